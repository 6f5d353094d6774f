"""`unmuddle laws`."""

import json as json_module
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from unmuddle.cli.outputs import check_file
from unmuddle.cli.parser import Parser, make_parser, path_option
from unmuddle.recipe.atomic import write_text
from unmuddle.recipe.errors import UsageError
from unmuddle.testing import check_loss


def parser() -> Parser:
    """Return the parser of the command."""
    made = make_parser(
        "unmuddle laws",
        "unmuddle laws MODULE:CALLABLE [--kinds KIND ...] [--processes K] [--profile PROFILE]\n"
        "              [--json FILE]",
        "Check the laws of losses on a loss, and print which of them hold.",
        "  unmuddle laws my_losses:my_loss --kinds supervised",
    )
    made.add_argument("loss", help="MODULE:CALLABLE; a class is instantiated without arguments")
    made.add_argument(
        "--kinds",
        nargs="*",
        default=["pairwise", "supervised"],
        help="kinds of the loss [pairwise supervised]",
    )
    made.add_argument(
        "--profile",
        choices=("fast", "ci", "thorough"),
        help="number of examples: fast ci thorough",
    )
    made.add_argument(
        "--processes", type=int, help="number of processes to compare with 1, if the loss gathers"
    )
    made.add_argument("--json", type=path_option, help="file to write the report to")
    return made


def run(loss: str, kinds: list[Any], profile: Any, processes: int | None, json: Path | None) -> int:
    """Print the report; return 1 if a law does not hold."""
    if json is not None:
        check_file("--json", json)
    module, _, name = loss.partition(":")
    if not (module and name):
        raise UsageError(f"{loss}: expected MODULE:CALLABLE")
    try:
        found = attrgetter(name)(import_module(module))
        fn = found() if isinstance(found, type) else found
        report = check_loss(fn, kinds=kinds, profile=profile, processes=processes)
    except (Exception, SystemExit) as error:  # the user's module can fail in any way
        raise UsageError(f"{loss}: {type(error).__name__}: {error}") from error
    if json is not None:
        write_text(json, json_module.dumps(report.to_dict(), indent=2) + "\n")
    print(report)
    return int(bool(report.of("failed")))
