"""`unmuddle export`."""

from pathlib import Path

from unmuddle.cli.outputs import check_file
from unmuddle.cli.parser import Parser, make_parser, path_option
from unmuddle.recipe.export import export_run


def parser() -> Parser:
    """Return the parser of the command."""
    made = make_parser(
        "unmuddle export",
        "unmuddle export --run RUN --out FILE.onnx | FILE.pt2",
        "Write the network of a run to a file that does not need this package. ARM is folded.\n"
        "The input is stored images (N, 3, S, S) uint8, and the output is probabilities (N, K).",
        "  unmuddle export --run runs/one --out faces.onnx\n"
        "  unmuddle export --run runs/one --out faces.pt2   # for torch.export.load",
    )
    made.add_argument("--run", type=path_option, required=True, help="folder of the run")
    made.add_argument("--out", type=path_option, required=True, help="file to write")
    return made


def run(run: Path, out: Path) -> None:
    """Write the file."""
    check_file("--out", out)
    export_run(run, out)
    print(out)
