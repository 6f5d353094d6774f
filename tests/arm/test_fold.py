"""Folded = unfolded: values, structure, export, and what cannot fold."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.trained_arm import trained
from unmuddle import ARM, fold_arm
from unmuddle.arm import FoldedARM, FoldedPublishedARM, PublishedARM
from unmuddle.testing import assert_within_budget


@pytest.mark.parametrize("affinity", ["running", "none"])
@pytest.mark.parametrize(
    ("channels", "size", "upscale"),
    [(12, (2, 2), "auto"), (440, (5, 9), "auto"), (512, (7, 7), 16), (960, (7, 7), 8),
     (1280, (3, 4), 16), (2048, (7, 5), "auto"), (64, (6, 2), 2), (64, (3, 3), 4),
     (63, (4, 5), "auto")],
)  # fmt: skip
def test_folded_steps_are_unfolded_within_the_rounding_of_fp32(
    channels: int, size: tuple[int, int], upscale, affinity: str
) -> None:
    arm = trained(PublishedARM, channels, size, upscale=upscale, affinity=affinity)
    x = torch.randn(8, channels, *size)
    with torch.no_grad():
        truth = copy.deepcopy(arm).double()(x.double())
        assert_within_budget(fold_arm(arm)(x), truth, arm(x))


@pytest.mark.parametrize(
    ("channels", "size", "maps"), [(512, (7, 7), 2), (3, (2, 5), 1), (64, (4, 4), 8)]
)
def test_folded_is_unfolded_within_the_rounding_of_fp32(
    channels: int, size: tuple[int, int], maps: int
) -> None:
    arm = trained(ARM, channels, size, maps=maps)
    for factor in (1, 2):
        x = torch.randn(8, channels, factor * size[0], factor * size[1])
        with torch.no_grad():
            truth = copy.deepcopy(arm).double()(x.double())
            assert_within_budget(fold_arm(arm)(x), truth, arm(x))


@pytest.mark.parametrize(
    ("make", "folded_type", "parameters", "children"),
    [
        (ARM, FoldedARM, ["weight", "scale", "offset"], []),
        (PublishedARM, FoldedPublishedARM, ["scale", "kernel", "offset"], [nn.Fold]),
    ],
)
def test_one_product_takes_the_place_of_arm(make, folded_type, parameters, children) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, stride=8), nn.BatchNorm2d(64), make(64, (4, 4)))
    x = torch.randn(4, 3, 32, 32)
    model(x)
    before = copy.deepcopy(model.state_dict())
    folded = fold_arm(model)
    assert [type(module) for module in folded] == [nn.Conv2d, nn.BatchNorm2d, folded_type]
    assert [type(child) for child in folded[2].children()] == children  # no normalisation left
    assert [*dict(folded[2].named_parameters())] == parameters
    assert not any(module.training for module in folded.modules())
    torch.testing.assert_close(folded(x), model.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_arm_under_two_names_is_folded_under_both() -> None:
    model = nn.Module()
    model.arm = ARM(64, (4, 4))
    model.arm(torch.randn(4, 64, 4, 4))
    model.head = nn.Sequential(model.arm)
    folded = fold_arm(model)
    assert folded.arm is folded.head[0]
    assert isinstance(folded.arm, FoldedARM)


def test_another_shape_is_refused_and_an_empty_batch_is_not() -> None:
    folded = fold_arm(trained(ARM, 64, (2, 2)))
    assert folded(torch.zeros(0, 64, 2, 2)).shape == (0, 128)
    with pytest.raises(ValueError, match=r"expected shape \(N, C, H, W\) = \(N, 64, H, W\)"):
        folded(torch.zeros(2, 32, 2, 4))
    folded = fold_arm(trained(PublishedARM, 64, (2, 2)))
    assert folded(torch.zeros(0, 64, 2, 2)).shape == (0, 1)
    for shape in ((2, 64, 3, 3), (2, 32, 2, 4)):
        with pytest.raises(ValueError, match=r"expected shape \(N, C, H, W\) = \(N, 64, 2, 2\)"):
            folded(torch.zeros(shape))


def test_what_is_frozen_stays_frozen() -> None:
    arm = ARM(6, (4, 4))
    arm(torch.randn(8, 6, 4, 4))
    assert all(p.requires_grad for p in fold_arm(arm).parameters())
    assert not any(p.requires_grad for p in fold_arm(arm.requires_grad_(False)).parameters())


@pytest.mark.parametrize("make", [ARM, PublishedARM])
def test_half_precision_stays(make) -> None:
    arm = trained(make, 64, (4, 4)).to(torch.bfloat16)
    folded = fold_arm(arm)
    x = torch.randn(2, 64, 4, 4, dtype=torch.bfloat16)
    assert folded(x).dtype == torch.bfloat16
    torch.testing.assert_close(folded(x), arm(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("make", [ARM, PublishedARM])
@pytest.mark.parametrize("is_folded", [True, False])
def test_onnxruntime_gives_the_same_for_any_batch(make, tmp_path: Path, is_folded: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    arm = trained(make, 128, (4, 5))
    arm = fold_arm(arm) if is_folded else arm
    example, path = (torch.randn(3, 128, 4, 5),), tmp_path / "arm.onnx"
    batch = ({0: torch.export.Dim("n")},)
    torch.onnx.export(
        arm, example, path, dynamo=True, input_names=["x"], dynamic_shapes=batch, verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    for n in (1, 5):
        x = torch.randn(n, 128, 4, 5)
        (got,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), arm(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_fold_is_told() -> None:
    with pytest.raises(ValueError, match=r"1: affinity='batch' depends on the batch"):
        fold_arm(nn.Sequential(nn.Identity(), trained(PublishedARM, 64, (4, 4), affinity="batch")))
    with pytest.raises(ValueError, match="arm: no training statistics to fold"):
        fold_arm(ARM(64, (4, 4)))
    with pytest.raises(ValueError, match="expected an ARM in it, found none, .* in Linear"):
        fold_arm(nn.Linear(1, 1))


def test_a_folded_form_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FoldedARM.forward
    monkeypatch.setattr(FoldedARM, "forward", lambda self, x: 1.001 * right(self, x))
    with pytest.raises(RuntimeError, match="arm: the folded form differs by"):
        fold_arm(trained(ARM, 64, (4, 4)))


def test_an_arm_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(ARM(8, (4, 4)))
    model(torch.full((4, 8, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="0: its weights or statistics are not finite"):
        fold_arm(model)
