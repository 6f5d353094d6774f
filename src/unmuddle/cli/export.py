"""`unmuddle export`."""

from pathlib import Path

from unmuddle.cli.outputs import check_file
from unmuddle.cli.parser import Parser, make_parser
from unmuddle.recipe.export import export_run
from unmuddle.recipe.run_folder import Epoch


def parser() -> Parser:
    """Return the parser of the command."""
    return make_parser(
        run,
        "unmuddle export --run RUN --out FILE.onnx | FILE.pt2",
        "  unmuddle export --run runs/one --out faces.onnx\n"
        "  unmuddle export --run runs/one --out faces.pt2   # for torch.export.load",
    )


def run(*, run: Path, out: Path, epoch: Epoch = "best") -> None:
    """Write the network of a run to a file that does not need this package. ARM is folded.

    The input is stored images (N, 3, S, S) uint8, and the output is probabilities (N, K).

    Args:
        run: folder of the run
        out: file to write
        epoch: epoch whose network is written
    """
    check_file("--out", out)
    export_run(run, out, epoch)
    print(out)
