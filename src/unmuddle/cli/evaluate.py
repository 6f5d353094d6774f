"""`unmuddle evaluate`.

Examples:
  unmuddle evaluate --run runs/one --split val
  unmuddle evaluate --run runs/one --images PATH --out classes.csv
"""

import json as json_module
from pathlib import Path
from typing import Literal

from rich.console import Console

from unmuddle.cli.parser import OutputFile
from unmuddle.recipe.atomic import write_text
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.run_folder import Epoch
from unmuddle.recipe.trained import evaluate_run, predict_folder
from unmuddle.report.table import metrics_table


def run(
    *,
    run: Path,
    data: str | None = None,
    split: Literal["train", "val", "test"] | None = None,
    epoch: Epoch = "best",
    json: OutputFile | None = None,
    images: Path | None = None,
    skip_unreadable: bool = False,
    out: OutputFile | None = None,
) -> None:
    """Score a run on a split of a data set, or classify a folder of images.

    Args:
        run: folder of the run
        data: data set, as for train; default: the run's own
        split: part of the data set, by default test
        epoch: epoch whose network is used
        json: file to write the metrics to
        images: folder of images without labels
        skip_unreadable: leave out images that cannot be read
        out: CSV to write; default: RUN/predictions.csv
    """
    if images is not None:
        if data is not None or split is not None or json is not None:
            raise UsageError("--images: has no labels to score, so no --data, --split or --json")
        path = out or run / "predictions.csv"
        number = predict_folder(run, images, path, epoch=epoch, skip_unreadable=skip_unreadable)
        print(f"{number} images: {path}")
        return
    if out is not None:
        raise UsageError("--out: belongs to --images")
    split = split or "test"
    figures = evaluate_run(run, data, split, epoch=epoch, skip_unreadable=skip_unreadable)
    if json is not None:
        write_text(json, json_module.dumps(figures, indent=2) + "\n")
    Console(emoji=False).print(metrics_table(figures, f"{run.name}, {split}"))
