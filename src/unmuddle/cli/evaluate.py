"""`unmuddle evaluate`."""

import json as json_module
from pathlib import Path
from typing import Literal

from rich.console import Console

from unmuddle.cli.outputs import check_file
from unmuddle.cli.parser import Parser, make_parser
from unmuddle.recipe.atomic import write_text
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.metrics import as_json
from unmuddle.recipe.run_folder import Epoch
from unmuddle.recipe.trained import evaluate_run, predict_folder
from unmuddle.report import metrics_table


def parser() -> Parser:
    """Return the parser of the command."""
    return make_parser(
        run,
        "unmuddle evaluate --run RUN [--split SPLIT] [--json FILE] | --images FOLDER [--out FILE]",
        "  unmuddle evaluate --run runs/one --split val\n"
        "  unmuddle evaluate --run runs/one --images PATH --out classes.csv",
    )


def run(
    *,
    run: Path,
    data: str | None = None,
    split: Literal["train", "val", "test"] | None = None,
    epoch: Epoch = "best",
    json: Path | None = None,
    images: Path | None = None,
    skip_unreadable: bool = False,
    out: Path | None = None,
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
    for option, path in (("--json", json), ("--out", out)):
        if path is not None:
            check_file(option, path)
    if images is not None:
        if data is not None or split is not None or json is not None:
            raise UsageError("--images: has no labels to score, so no --data, --split or --json")
        out = out or run / "predictions.csv"
        number = predict_folder(run, images, out, epoch=epoch, skip_unreadable=skip_unreadable)
        print(f"{number} images: {out}")
        return
    if out is not None:
        raise UsageError("--out: belongs to --images")
    split = split or "test"
    found = evaluate_run(run, data, split, epoch=epoch, skip_unreadable=skip_unreadable)
    figures = as_json(*found)
    if json is not None:
        write_text(json, json_module.dumps(figures, indent=2) + "\n")
    Console(emoji=False).print(metrics_table(figures, f"{run.name}, {split}"))
