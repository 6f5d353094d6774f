"""`unmuddle repair`.

Examples:
  unmuddle repair --data folder:PATH --labels labels.csv --out repaired
"""

from pathlib import Path

from unmuddle.recipe.repair import Way, repair


def run(*, data: str, labels: Path, out: Path, by: Way = "copy") -> None:
    """Write a copy of a folder of images with every image in its decided class.

    The original is not changed.

    Args:
        data: folder:PATH, as for train
        labels: decisions, as for train
        out: folder to write
        by: copy images, link to them, or only list them in manifest.csv
    """
    print(repair(data, labels, out, by))
