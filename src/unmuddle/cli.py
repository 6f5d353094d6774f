"""The command line: `unmuddle train | evaluate | audit | export | report | doctor | laws`."""

import signal
import sys
from argparse import ArgumentError, ArgumentParser
from dataclasses import replace
from importlib import import_module
from json import dumps
from operator import attrgetter
from pathlib import Path
from typing import Any

from unmuddle import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
_EXIT_CODES = {"finished": 0, "diverged": 1, "interrupted": INTERRUPTED}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the process's exit code; 2 for a wrong input."""
    try:
        parser = _parser()
    except ImportError:
        print(
            "unmuddle: the command line needs more: pip install 'unmuddle[train]'", file=sys.stderr
        )
        return 2
    from unmuddle.recipe.errors import UsageError

    try:
        chosen: Any = parser.parse_args(
            _with_preset(sys.argv[1:] if arguments is None else arguments)
        )
    except (ArgumentError, UnicodeDecodeError) as error:
        from unmuddle.help import plain

        print(f"unmuddle: error: {plain(str(error))}", file=sys.stderr)
        return 2

    if "" not in sys.path:
        sys.path.append("")  # a MODULE:CALLABLE of this folder; last, so that it hides nothing
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "audit": _audit,
        "export": _export,
        "report": _report,
        "doctor": _doctor,
        "laws": _laws,
    }
    try:
        return commands[chosen.command](**chosen[chosen.command].as_dict()) or 0
    except UsageError as error:
        print(f"unmuddle {chosen.command}: error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        _heed_no_more_children()
        if (reason := _failure(error)) is None:
            raise
        print(f"unmuddle {chosen.command}: error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("unmuddle: interrupted", file=sys.stderr)
        return INTERRUPTED


def _with_preset(arguments: list[str]) -> list[str]:
    """The preset's file before every other option, which overrides it."""
    from unmuddle.recipe.presets import PRESETS

    if arguments[:1] != ["train"]:
        return arguments
    finder = ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", nargs="?")
    preset = finder.parse_known_args(arguments)[0].preset
    if preset not in PRESETS:
        return arguments
    return ["train", "--config", str(PRESETS[preset]), *arguments[1:]]


def _parser() -> Any:
    from jsonargparse import ArgumentParser as Parser

    from unmuddle.help import Help
    from unmuddle.recipe.config import TrainConfig
    from unmuddle.recipe.presets import PRESETS

    def parser_of(usage: str, description: str, examples: str) -> Parser:
        return Parser(
            usage=usage,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=Help,
            exit_on_error=False,
            allow_abbrev=False,
        )

    train = parser_of(
        "unmuddle train [--preset NAME] [--config FILE] [--OPTION VALUE ...] | --resume RUN",
        "Train a classifier on images with ambiguous labels; with no option, on drawn faces.",
        "  unmuddle train --data folder:PATH --backbone resnet18 --image_size 96 --out runs/one\n"
        "  unmuddle train --preset rafdb --data rafdb:PATH --noise symmetric:0.2 --parts uerm\n"
        "  torchrun --nproc-per-node 4 -m unmuddle train --preset affectnet --data affectnet:PATH",
    )
    train.add_argument("--preset", choices=[*PRESETS], help="options for a benchmark")
    train.add_argument("--config", action="config", help="file of options, as in a run folder")
    train.add_argument("--resume", type=Path, help="go on with the run in this folder, stopped")
    train.add_argument("--quiet", action="store_true", help="print the run's folder alone")
    train.add_class_arguments(TrainConfig)
    for action in train._actions:  # a switch needs no value, and takes one
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True

    evaluate = parser_of(
        "unmuddle evaluate --run RUN [--split SPLIT] [--json FILE] | --images FOLDER [--out FILE]",
        "Score a run on a split of a data set, or classify a folder of images.",
        "  unmuddle evaluate --run runs/one --split val\n"
        "  unmuddle evaluate --run runs/one --images PATH --out classes.csv",
    )
    evaluate.add_argument("--run", type=Path, required=True, help="folder of the run")
    evaluate.add_argument("--data", help="data set, as for train; default: the run's own")
    evaluate.add_argument(
        "--split", choices=("train", "val", "test"), help="part of the data set; default: test"
    )
    evaluate.add_argument("--json", type=Path, help="file to write the figures to")
    evaluate.add_argument("--images", type=Path, help="folder of images without labels instead")
    evaluate.add_argument(
        "--skip_unreadable", action="store_true", help="go on without images that cannot be read"
    )
    evaluate.add_argument(
        "--out", type=Path, help="CSV of their classes; default: RUN/predictions.csv"
    )

    audit = parser_of(
        "unmuddle audit --run RUN [--data DATA] [--limit N] [--draw] [--pred_probs FILE]\n"
        "               [--out FOLDER]",
        "Rank the training labels by how likely a run's predictions make them wrong; accept or\n"
        "reject each on a page, or in the file beside it.",
        "  unmuddle audit --run runs/one\n"
        "  unmuddle train --labels labels.csv --data folder:PATH   # what was decided",
    )
    audit.add_argument("--run", type=Path, required=True, help="folder of the run")
    audit.add_argument("--data", help="data set, as for train; default: the run's own")
    audit.add_argument("--limit", type=int, default=200, help="how many labels")
    audit.add_argument(
        "--draw",
        action="store_true",
        help="draw labels at random from the more suspicious half; UERM learns most from these",
    )
    audit.add_argument(
        "--pred_probs",
        type=Path,
        help=".npy file of predicted probabilities (n, K); default: the run's own",
    )
    audit.add_argument("--out", type=Path, help="folder to write; default: RUN/audit")

    export = parser_of(
        "unmuddle export --run RUN --out FILE.onnx | FILE.pt2",
        "Write a run's network, ARM folded, to a file that needs none of this package: it takes\n"
        "images (N, 3, S, S) as stored, uint8, and gives probabilities (N, K).",
        "  unmuddle export --run runs/one --out faces.onnx\n"
        "  unmuddle export --run runs/one --out faces.pt2   # for torch.export.load",
    )
    export.add_argument("--run", type=Path, required=True, help="folder of the run")
    export.add_argument("--out", type=Path, required=True, help="file to write")

    report = parser_of(
        "unmuddle report RUN [RUN ...] [--out FILE]",
        "Print runs side by side, and write a page that shows them: curves, confusion, relabels,\n"
        "options. It is one file, and loads nothing.",
        "  unmuddle report runs/one\n  unmuddle report runs/one runs/two --out comparison.html",
    )
    report.add_argument("runs", nargs="+", type=Path, help="run folders")
    report.add_argument(
        "--out", type=Path, help="file to write; default: report.html in RUN, or here for several"
    )

    doctor = parser_of(
        "unmuddle doctor",
        "Say what this machine has, whether the parts compute the same on all of it, and if they\n"
        "do, how fast.",
        "  unmuddle doctor > doctor.txt",
    )

    laws = parser_of(
        "unmuddle laws MODULE:CALLABLE [--kinds KIND ...] [--profile PROFILE]",
        "Try the laws of losses on one, and print what holds and what does not.",
        "  unmuddle laws my_losses:my_loss --kinds supervised",
    )
    laws.add_argument("loss", help="MODULE:CALLABLE; a class is made without arguments")
    laws.add_argument("--kinds", nargs="*", default=["pairwise", "supervised"], help="of the loss")
    laws.add_argument("--profile", choices=("fast", "ci", "thorough"), help="how many examples")

    parser = Parser(
        prog="unmuddle",
        version=__version__,
        usage="unmuddle COMMAND [--help] ...",
        description="Classifiers whose labels are ambiguous: SupCon, ARM, UERM.",
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("train", train, help="train a classifier")
    commands.add_subcommand("evaluate", evaluate, help="score a run, or classify images")
    commands.add_subcommand("audit", audit, help="find labels that may be wrong")
    commands.add_subcommand("export", export, help="write the network for use elsewhere")
    commands.add_subcommand("report", report, help="compare runs")
    commands.add_subcommand("doctor", doctor, help="check this machine")
    commands.add_subcommand("laws", laws, help="test a loss of your own")
    return parser


def _train(
    preset: str | None, config: Any, resume: Path | None, quiet: bool, **options: Any
) -> int:
    from accelerate import PartialState
    from rich.console import Console

    from unmuddle.recipe.config import TrainConfig
    from unmuddle.recipe.errors import UsageError
    from unmuddle.recipe.run_folder import RunFolder
    from unmuddle.recipe.train import train

    chosen = TrainConfig(**options)
    if preset is not None and chosen.data == TrainConfig.data:
        raise UsageError(f"--preset {preset}: needs --data {preset}:PATH")
    if resume is not None:
        if chosen != TrainConfig():
            raise UsageError("--resume: goes on with the options of the run; give no other")
        chosen = replace(RunFolder(resume).config("--resume"), out=str(resume))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a cluster's time limit sends it
    path = train(chosen, Console(quiet=quiet, emoji=False), resume=resume is not None)
    if not PartialState().is_main_process:
        return 0
    try:
        _report([path], quiet=quiet)
    except (UsageError, OSError):
        hint = f"the run's own files are whole; unmuddle report {path} writes its report"
        print(f"unmuddle train: {hint}", file=sys.stderr)
        raise
    if quiet:
        print(path)
    return _EXIT_CODES[RunFolder(path).summary()["status"]]


def _heed_no_more_children() -> None:
    """Torch would raise again, in the middle of what follows, for each further worker that ends."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _failure(error: OSError | RuntimeError) -> str | None:
    """The one line that a failure from outside needs; `None` if it may be a fault of the code."""
    text = str(error)
    # Which of the two comes first when a worker is killed is chance.
    if "DataLoader worker" in text or isinstance(error, ConnectionError):
        return f"a process that loads images has ended: {text}"
    if isinstance(error, OSError):
        return text
    if "gloo" in text or "NCCL" in text or "c10d" in text:
        return f"another process of this training has ended, or cannot be reached: {text}"
    return None


def _evaluate(
    run: Path,
    data: str | None,
    split: Any,
    json: Path | None,
    images: Path | None,
    skip_unreadable: bool,
    out: Path | None,
) -> None:
    from rich.console import Console

    from unmuddle.recipe.atomic import write_text
    from unmuddle.recipe.errors import UsageError
    from unmuddle.recipe.metrics import as_json
    from unmuddle.recipe.trained import evaluate_run, predict_folder
    from unmuddle.report import metrics_table

    for option, path in (("--json", json), ("--out", out)):
        if path is not None:
            _check_file(option, path)
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
        write_text(json, dumps(figures, indent=2) + "\n")
    Console(emoji=False).print(metrics_table(figures, f"{run.name}, {split}"))


def _check_file(option: str, path: Path) -> None:
    from unmuddle.recipe.errors import UsageError

    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: expected a file in a folder that is there")


def _check_report(option: str, path: Path) -> None:
    from unmuddle.recipe.errors import UsageError
    from unmuddle.report import is_report

    if path.exists() and not is_report(path):
        raise UsageError(f"{option} {path}: exists and is not a page of unmuddle")


def _audit(
    run: Path,
    data: str | None,
    limit: int,
    draw: bool,
    pred_probs: Path | None,
    out: Path | None,
) -> None:
    from unmuddle.recipe.atomic import make_folder, write_text, write_whole
    from unmuddle.recipe.audit import audit
    from unmuddle.recipe.decisions import check_undecided, write_rows
    from unmuddle.recipe.run_folder import RunFolder
    from unmuddle.report import Card, audit_page

    suspects = audit(data, run, limit, draw=draw, pred_probs=pred_probs)
    out = make_folder("--out", out or run / "audit")
    check_undecided(out / "suspects.csv")
    _check_report("--out", out / "index.html")
    rows = [suspect.row for suspect in suspects]
    write_whole(out / "suspects.csv", lambda file: write_rows(file, rows))
    cards = [
        Card(*suspect.row[:4], suspect.why, suspect.image.permute(1, 2, 0).numpy())
        for suspect in suspects
    ]
    page = audit_page(cards, f"Labels of {run.resolve().name}")
    write_text(out / "index.html", page)
    print(
        f"{len(suspects)} labels: look at {out / 'index.html'}, or fill in {out / 'suspects.csv'}"
    )
    duplicates = RunFolder(run).duplicates
    if duplicates.exists():
        print(f"images that occur more than once: {duplicates}")


def _export(run: Path, out: Path) -> None:
    from unmuddle.recipe.export import export_run

    _check_file("--out", out)
    export_run(run, out)
    print(out)


def _doctor() -> int:
    from unmuddle.doctor import checks, environment, speeds

    for name, value in environment().items():
        print(f"{name}: {value}")
    print("\nagreement with fp64 on the CPU:")
    failed = 0
    for check in checks():
        print(f"  {check.name}: {check.error or 'agrees'}")
        failed += bool(check.error)
    if failed:
        print(f"{failed} do not agree; nothing was timed")
        return 1
    print("\nforward and backward:")
    for name, milliseconds in speeds():
        print(f"  {name}: {milliseconds:.2f} ms")
    return 0


def _laws(loss: str, kinds: list[Any], profile: str | None) -> int:
    from unmuddle.recipe.errors import UsageError
    from unmuddle.testing import check_loss

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


def _report(runs: list[Path], out: Path | None = None, *, quiet: bool = False) -> None:
    from rich.console import Console

    from unmuddle.recipe.atomic import write_text
    from unmuddle.report import comparison_table, read_runs, report_page

    if out is not None:
        _check_file("--out", out)
    elif len(runs) == 1:
        out = runs[0] / "report.html"
    else:
        out = Path("report.html")
    _check_report("--out", out)
    read = read_runs(runs)
    page = report_page(read)
    write_text(out, page)
    console = Console(quiet=quiet, emoji=False)
    console.print(comparison_table(read))
    console.print(f"report: {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
