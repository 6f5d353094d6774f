"""`unmuddle export`.

Examples:
  unmuddle export --run runs/one --out faces.onnx
  unmuddle export --run runs/one --out faces.pt2   # for torch.export.load
"""

from pathlib import Path

from unmuddle.cli.parser import OutputFile
from unmuddle.recipe.export import export_run
from unmuddle.recipe.run_folder import Epoch


def run(*, run: Path, out: OutputFile, epoch: Epoch = "best") -> None:
    """Write the network of a run to a file that does not need this package. ARM is folded.

    The input is stored images (N, 3, S, S) uint8, and the output is probabilities (N, K).

    Args:
        run: folder of the run
        out: file to write
        epoch: epoch whose network is written
    """
    export_run(run, out, epoch)
    print(out)
