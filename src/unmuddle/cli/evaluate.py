"""`unmuddle evaluate`."""

import json as json_module
from pathlib import Path
from typing import Any

from rich.console import Console

from unmuddle.cli.outputs import check_file
from unmuddle.cli.parser import Parser, make_parser, path_option
from unmuddle.recipe.atomic import write_text
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.metrics import as_json
from unmuddle.recipe.trained import evaluate_run, predict_folder
from unmuddle.report import metrics_table


def parser() -> Parser:
    """Return the parser of the command."""
    made = make_parser(
        "unmuddle evaluate",
        "unmuddle evaluate --run RUN [--split SPLIT] [--json FILE] | --images FOLDER [--out FILE]",
        "Score a run on a split of a data set, or classify a folder of images.",
        "  unmuddle evaluate --run runs/one --split val\n"
        "  unmuddle evaluate --run runs/one --images PATH --out classes.csv",
    )
    made.add_argument("--run", type=path_option, required=True, help="folder of the run")
    made.add_argument("--data", help="data set, as for train; default: the run's own")
    made.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="part of the data set: train val test [test]",
    )
    made.add_argument("--json", type=path_option, help="file to write the metrics to")
    made.add_argument("--images", type=path_option, help="folder of images without labels")
    made.add_argument(
        "--skip_unreadable", action="store_true", help="leave out images that cannot be read"
    )
    made.add_argument("--out", type=path_option, help="CSV to write; default: RUN/predictions.csv")
    return made


def run(
    run: Path,
    data: str | None,
    split: Any,
    json: Path | None,
    images: Path | None,
    skip_unreadable: bool,
    out: Path | None,
) -> None:
    """Print a table of metrics, or write a file of predictions."""
    for option, path in (("--json", json), ("--out", out)):
        if path is not None:
            check_file(option, path)
    if images is not None:
        if data is not None or split is not None or json is not None:
            raise UsageError("--images: has no labels to score, so no --data, --split or --json")
        out = out or run / "predictions.csv"
        number = predict_folder(run, images, out, skip_unreadable=skip_unreadable)
        print(f"{number} images: {out}")
        return
    if out is not None:
        raise UsageError("--out: belongs to --images")
    split = split or "test"
    figures = as_json(*evaluate_run(run, data, split, skip_unreadable=skip_unreadable))
    if json is not None:
        write_text(json, json_module.dumps(figures, indent=2) + "\n")
    Console(emoji=False).print(metrics_table(figures, f"{run.name}, {split}"))
