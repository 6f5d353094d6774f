"""Export of a trained network to ONNX or `torch.export`, in one file without this package."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmuddle.arm import fold_arm
from unmuddle.recipe.atomic import write_whole
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.run_folder import Epoch
from unmuddle.recipe.trained import load_trained

NEEDED = ("onnx", "onnxruntime", "onnxscript")  # for .onnx
TOLERANCE = 1e-4  # largest error of a probability


class Deployed(nn.Module):
    """Network that maps stored images `(N, 3, S, S)` uint8 to probabilities `(N, K)`.

    ARM is folded, and the projection head is removed.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        model = fold_arm(model) if model.arm is not None else model  # pyright: ignore
        model.projection = None
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Classify a batch."""
        return self.model(self.model.standardize(images)).logits.softmax(1)


def export_run(run: Path, out: Path, epoch: Epoch = "best") -> None:
    """Write the network of a run to `out`, a `.onnx` or `.pt2` (`torch.export`) file.

    The exported network accepts batches of any size. The metadata of the file are two JSON values:
    `classes`, the class names in the order of the probabilities, and `resize`, how to resize images
    to S x S pixels. The file is compared with the network on random images before it is moved to
    `out`.

    Raises:
        UsageError: the run cannot be read, the format is unknown, or a package is missing.
        RuntimeError: the probabilities of the file differ from those of the network.
    """
    write = {".onnx": _write_onnx, ".pt2": _write_program}.get(out.suffix)
    if write is None:
        raise UsageError(f"--out {out}: expected a name that ends in .onnx or .pt2")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise UsageError(f"--out {out}: pip install {' '.join(missing)}")
    trained = load_trained(run, epoch)
    torch.manual_seed(0)
    images = torch.randint(256, (3, 3, *(trained.image_size,) * 2), dtype=torch.uint8)
    with torch.no_grad():
        expected = trained.model(trained.model.standardize(images)).logits.softmax(1)
    deployed = Deployed(trained.model).eval()
    resize = {"size": trained.image_size, "interpolation": "bilinear", "antialias": True}
    metadata = {"classes": json.dumps(trained.classes), "resize": json.dumps(resize)}

    def write_and_compare(path: Path) -> None:
        found = write(deployed, images, metadata, path)
        error = float((found - expected).abs().max())
        if not error <= TOLERANCE:
            raise RuntimeError(f"{out}: probabilities differ by {error:.1e} from the network's")

    write_whole(out, write_and_compare)


def _write_program(model: Deployed, images: Tensor, metadata: dict[str, str], path: Path) -> Tensor:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=metadata)
    with path.open("rb") as file, torch.no_grad():
        return torch.export.load(file).module()(images)


def _write_onnx(model: Deployed, images: Tensor, metadata: dict[str, str], path: Path) -> Tensor:
    import onnx
    import onnxruntime

    program: Any = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
