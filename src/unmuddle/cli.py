"""The command line: `unmuddle train | evaluate | audit | report | laws`."""

import sys
from argparse import ArgumentError
from dataclasses import replace
from importlib import import_module
from json import dumps
from operator import attrgetter
from pathlib import Path
from signal import SIGTERM, default_int_handler, signal
from typing import Any

INTERRUPTED = 130  # what a shell reports for Ctrl-C
_EXIT_CODES = {"finished": 0, "diverged": 1, "interrupted": INTERRUPTED}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the process's exit code; 2 for a wrong input."""
    try:
        from jsonargparse import ArgumentParser
    except ImportError:
        print(
            "unmuddle: the command line needs more: pip install 'unmuddle[train]'", file=sys.stderr
        )
        return 2
    from unmuddle.recipes.config import TrainConfig
    from unmuddle.recipes.errors import UsageError

    train = ArgumentParser(
        description="Train a classifier; with no argument, on drawn faces.", exit_on_error=False
    )
    train.add_argument("--config", action="config", help="file of options, as in a run folder")
    train.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run that was stopped; no other option",
    )
    train.add_class_arguments(TrainConfig)
    evaluate = ArgumentParser(
        description="Score a run on a split of a data set, or classify a folder of images.",
        exit_on_error=False,
    )
    evaluate.add_argument("--run", type=Path, required=True, help="folder of the run")
    evaluate.add_argument("--data", help="data set, as for train; default: the run's own")
    evaluate.add_argument("--split", choices=("train", "val", "test"), default="test")
    evaluate.add_argument("--json", type=Path, help="file to write the figures to")
    evaluate.add_argument("--images", type=Path, help="folder of images without labels instead")
    evaluate.add_argument(
        "--out", type=Path, help="CSV of their classes; default: RUN/predictions.csv"
    )
    audit = ArgumentParser(
        description="Rank the training labels that a run's predictions contradict; accept or "
        "reject each on a page, or in the file beside it.",
        exit_on_error=False,
    )
    audit.add_argument("--run", type=Path, required=True, help="folder of the run")
    audit.add_argument("--data", help="data set, as for train; default: the run's own")
    audit.add_argument("--limit", type=int, default=200, help="how many labels (default: 200)")
    audit.add_argument("--out", type=Path, help="folder to write; default: RUN/audit")
    report = ArgumentParser(
        description="Draw the plots of runs and print them side by side.", exit_on_error=False
    )
    report.add_argument("runs", nargs="+", type=Path, help="run folders")

    laws = ArgumentParser(
        description="Try the laws of losses on one, and print what holds and what does not.",
        exit_on_error=False,
    )
    laws.add_argument("loss", help="MODULE:CALLABLE; a class is made without arguments")
    laws.add_argument("--kinds", nargs="*", default=["pairwise", "supervised"], help="of the loss")
    laws.add_argument("--profile", choices=("fast", "ci", "thorough"), help="how many examples")

    parser = ArgumentParser(
        prog="unmuddle",
        description="Classifiers whose labels are ambiguous: SupCon, ARM, UERM.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("train", train, help="train a classifier")
    commands.add_subcommand("evaluate", evaluate, help="score a run, or classify images")
    commands.add_subcommand("audit", audit, help="find labels that may be wrong")
    commands.add_subcommand("report", report, help="compare runs")
    commands.add_subcommand("laws", laws, help="test a loss of your own")
    try:
        chosen: Any = parser.parse_args(arguments)
    except (ArgumentError, UnicodeDecodeError) as error:
        print(f"unmuddle: error: {error}", file=sys.stderr)
        return 2

    try:
        if chosen.command == "train":
            options = chosen.train.as_dict()
            options.pop("config")
            return _train(options.pop("resume"), TrainConfig(**options))
        if chosen.command == "evaluate":
            _evaluate(**chosen.evaluate.as_dict())
        elif chosen.command == "audit":
            _audit(**chosen.audit.as_dict())
        elif chosen.command == "laws":
            return _laws(**chosen.laws.as_dict())
        else:
            _report(chosen.report.runs)
        return 0
    except UsageError as error:
        print(f"unmuddle {chosen.command}: error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        if (reason := _failure(error)) is None:
            raise
        print(f"unmuddle {chosen.command}: error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("unmuddle: interrupted", file=sys.stderr)
        return INTERRUPTED


def _train(resume: Path | None, config: Any) -> int:
    from accelerate import PartialState

    from unmuddle.recipes.config import TrainConfig
    from unmuddle.recipes.errors import UsageError
    from unmuddle.recipes.run_folder import read_config
    from unmuddle.recipes.train import train
    from unmuddle.report import read_run

    if resume is not None:
        if config != TrainConfig():
            raise UsageError("--resume: goes on with the options of the run; give no other")
        config = replace(read_config(resume, "--resume"), out=str(resume))
    signal(SIGTERM, default_int_handler)  # as a cluster's time limit sends it
    path = train(config, resume=resume is not None)
    if not PartialState().is_main_process:
        return 0
    _report([path])
    return _EXIT_CODES[read_run(path).summary["status"]]


def _failure(error: OSError | RuntimeError) -> str | None:
    """The one line that a failure from outside needs; `None` if it may be a fault of the code."""
    text = str(error)
    if isinstance(error, OSError):
        return text
    if "DataLoader worker" in text:
        return f"a process that loads images has ended: {text}"
    if "gloo" in text or "NCCL" in text or "c10d" in text:
        return f"another process of this training has ended, or cannot be reached: {text}"
    return None


def _evaluate(
    run: Path,
    data: str | None,
    split: Any,
    json: Path | None,
    images: Path | None,
    out: Path | None,
) -> None:
    from rich.console import Console

    from unmuddle.recipes.errors import UsageError
    from unmuddle.recipes.metrics import as_json
    from unmuddle.recipes.run_folder import write_whole
    from unmuddle.recipes.trained import evaluate_run, predict_folder
    from unmuddle.report import metrics_table

    for option, path in (("--json", json), ("--out", out)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UsageError(f"{option} {path}: expected a file in a folder that is there")
    if images is not None:
        if data is not None or json is not None:
            raise UsageError("--images: has no labels to score, so neither --data nor --json")
        out = out or run / "predictions.csv"
        print(f"{predict_folder(run, images, out)} images: {out}")
        return
    if out is not None:
        raise UsageError("--out: belongs to --images")
    figures = as_json(*evaluate_run(run, data, split))
    if json is not None:
        write_whole(json, lambda file: file.write_text(dumps(figures, indent=2) + "\n"))
    Console().print(metrics_table(figures, f"{run.name}, {split}"))


def _audit(run: Path, data: str | None, limit: int, out: Path | None) -> None:
    from unmuddle.recipes.audit import audit
    from unmuddle.recipes.decisions import check_undecided, write_rows
    from unmuddle.recipes.run_folder import make_folder, write_whole
    from unmuddle.report import Card, audit_page

    suspects = audit(data, run, limit)
    out = make_folder("--out", out or run / "audit")
    check_undecided(out / "suspects.csv")
    rows = [suspect.row for suspect in suspects]
    write_whole(out / "suspects.csv", lambda file: write_rows(file, rows))
    cards = [
        Card(*suspect.row[:4], suspect.why, suspect.image.permute(1, 2, 0).numpy())
        for suspect in suspects
    ]
    page = audit_page(cards, f"Labels of {run.resolve().name}")
    write_whole(out / "index.html", lambda file: file.write_text(page, encoding="utf-8"))
    print(
        f"{len(suspects)} labels: look at {out / 'index.html'}, or fill in {out / 'suspects.csv'}"
    )
    if (run / "duplicates.csv").exists():
        print(f"images that occur more than once: {run / 'duplicates.csv'}")


def _laws(loss: str, kinds: list[Any], profile: str | None) -> int:
    from unmuddle.recipes.errors import UsageError
    from unmuddle.testing import check_loss

    sys.path.insert(0, "")  # a module in this folder, as for python -m
    module, _, name = loss.partition(":")
    if not (module and name):
        raise UsageError(f"{loss}: expected MODULE:CALLABLE")
    try:
        found = attrgetter(name)(import_module(module))
    except Exception as error:  # the user's module can fail in any way
        raise UsageError(f"{loss}: {type(error).__name__}: {error}") from error
    try:
        report = check_loss(
            found() if isinstance(found, type) else found, kinds=kinds, profile=profile
        )
    except Exception as error:
        raise UsageError(f"{loss}: {type(error).__name__}: {error}") from error
    print(report)
    return int(bool(report.of("failed")))


def _report(paths: list[Path]) -> None:
    from rich.console import Console

    from unmuddle.recipes.errors import UsageError
    from unmuddle.report import comparison_table, draw_plots, read_run

    try:
        runs = [read_run(path) for path in paths]
    except ValueError as error:
        raise UsageError(str(error)) from error
    for run in runs:
        draw_plots(run)
    Console().print(comparison_table(runs))


if __name__ == "__main__":
    sys.exit(main())
