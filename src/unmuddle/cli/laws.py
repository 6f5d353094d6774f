"""`unmuddle laws`."""

from importlib import import_module
from operator import attrgetter
from typing import Any

from unmuddle.cli.parser import Parser, make_parser
from unmuddle.recipe.errors import UsageError
from unmuddle.testing import check_loss


def parser() -> Parser:
    """Options of the command."""
    made = make_parser(
        "unmuddle laws",
        "unmuddle laws MODULE:CALLABLE [--kinds KIND ...] [--profile PROFILE]",
        "Try the laws of losses on one, and print what holds and what does not.",
        "  unmuddle laws my_losses:my_loss --kinds supervised",
    )
    made.add_argument("loss", help="MODULE:CALLABLE; a class is made without arguments")
    made.add_argument(
        "--kinds",
        nargs="*",
        default=["pairwise", "supervised"],
        help="of the loss [pairwise supervised]",
    )
    made.add_argument(
        "--profile",
        choices=("fast", "ci", "thorough"),
        help="how many examples: fast ci thorough",
    )
    return made


def run(loss: str, kinds: list[Any], profile: Any) -> int:
    """Print the report; return 1 if a law does not hold."""
    module, _, name = loss.partition(":")
    if not (module and name):
        raise UsageError(f"{loss}: expected MODULE:CALLABLE")
    try:
        found = attrgetter(name)(import_module(module))
        fn = found() if isinstance(found, type) else found
        report = check_loss(fn, kinds=kinds, profile=profile)
    except (Exception, SystemExit) as error:  # the user's module can fail in any way
        raise UsageError(f"{loss}: {type(error).__name__}: {error}") from error
    print(report)
    return int(bool(report.of("failed")))
