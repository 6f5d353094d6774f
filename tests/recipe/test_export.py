"""A network in a file of its own computes what the network of the run does."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.helpers import thinned
from unmuddle.cli import main
from unmuddle.recipe import export
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.train import train
from unmuddle.recipe.trained import load_trained


@pytest.fixture(scope="module", params=thinned(["supcon,arm,uerm", "none"], 2))
def run(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        TrainConfig(
            data="digits", backbone="tests.helpers.networks:tiny", batch_size=64, lr=1e-2, epochs=2,
            parts=request.param, out=str(tmp_path_factory.mktemp("export") / "run"),
        )
    )  # fmt: skip


def expected(run: Path, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        model = load_trained(run).model
        return model(model.standardize(images)).logits.softmax(1).numpy()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_formats_agree_for_any_batch(run: Path, tmp_path: Path, capsys) -> None:
    for name in ("net.onnx", "net.pt2"):
        assert main(["export", "--run", str(run), "--out", str(tmp_path / name)]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    extra = {"classes": "", "resize": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    for count in (1, 7):
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        by_onnx = session.run(["probabilities"], {"images": images.numpy()})[0]
        by_torch = program.module()(images).detach().numpy()
        for found in (by_onnx, by_torch):
            np.testing.assert_allclose(found, expected(run, images), atol=1e-5)
    props = {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert (
        json.loads(props["classes"]) == json.loads(extra["classes"]) == [str(k) for k in range(10)]
    )
    resize = {"size": 32, "interpolation": "bilinear", "antialias": True}
    assert json.loads(props["resize"]) == json.loads(extra["resize"]) == resize
    assert not any("arm.bn" in key or "projection" in key for key in program.state_dict)


def test_a_file_that_computes_something_else_is_not_left(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(
        export.Deployed, "forward", lambda self, x: self.model(x.float()).logits.softmax(1)
    )
    with pytest.raises(RuntimeError, match="probabilities differ by"):
        export.export_run(run, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("net.pth", "net.pth: expected a name that ends in .onnx or .pt2"),
        ("nowhere/net.onnx", "expected a file in a folder that is there"),
    ],
)
def test_wrong_names(run: Path, out: str, message: str, tmp_path: Path, capsys) -> None:
    assert main(["export", "--run", str(run), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert main(["export", "--run", str(tmp_path), "--out", str(tmp_path / "net.onnx")]) == 2
    assert ": holds no run: no config.yaml" in capsys.readouterr().err
