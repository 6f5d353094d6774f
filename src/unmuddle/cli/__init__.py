"""Command line `unmuddle COMMAND`. Each command is a module of this package."""

import signal
import sys
from argparse import REMAINDER, Namespace
from importlib import import_module

from unmuddle import __version__
from unmuddle.cli.parser import Help, Parser, make_parser
from unmuddle.recipe.errors import UsageError

INTERRUPTED = 130  # what a shell reports for Ctrl-C
COMMANDS = {
    "train": "train a classifier",
    "evaluate": "score a run, or classify images",
    "audit": "find labels that may be wrong",
    "repair": "write a copy of a folder with corrected labels",
    "export": "export the network of a run",
    "report": "compare runs",
    "doctor": "check this machine",
    "laws": "test your own loss",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return its exit code, which is 2 for invalid input."""
    parser = Parser(
        "unmuddle",
        usage="unmuddle COMMAND [--help] ...",
        formatter_class=Help,
        allow_abbrev=False,
        description="Classification with ambiguous labels: SupCon, ARM, UERM.\n\ncommands:\n"
        + "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=f"unmuddle {__version__}")
    parser.add_argument("command", choices=COMMANDS, help="one of the above")
    parser.add_argument("options", nargs=REMAINDER, help="options of the command")
    try:
        return _run(parser.parse_args(arguments))
    except SystemExit as stop:  # of the parser, for help or invalid input
        return int(stop.code or 0)


def _run(chosen: Namespace) -> int:
    try:
        command = import_module(f"unmuddle.cli.{chosen.command}")
        parser = make_parser(command)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("unmuddle"):
            raise
        hint = "this command needs more packages: pip install 'unmuddle[train]'"
        print(f"unmuddle {chosen.command}: {hint} ({error})", file=sys.stderr)
        return 2

    if "" not in sys.path:
        sys.path.append("")  # to find MODULE:CALLABLE in this folder; last, to hide nothing
    options = parser.parse_args(chosen.options)
    try:
        return command.run(**vars(options)) or 0
    except UsageError as error:
        print(f"unmuddle {chosen.command}: error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        _heed_no_more_children()
        if (reason := failure(error)) is None:
            raise
        print(f"unmuddle {chosen.command}: error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("unmuddle: interrupted", file=sys.stderr)
        return INTERRUPTED


def _heed_no_more_children() -> None:
    """Ignore child processes that end.

    Otherwise, torch would raise another error for each worker that ends.
    """
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def failure(error: OSError | RuntimeError) -> str | None:
    """Describe an external failure in one line. Return `None` if it may be a bug."""
    text = str(error)
    # When a worker is killed, either of these errors can come first.
    if "DataLoader worker" in text or isinstance(error, ConnectionError):
        return f"a process that loads images has ended: {text}"
    if isinstance(error, OSError):
        return text
    if "gloo" in text or "NCCL" in text or "c10d" in text:
        return f"another process of this training has ended, or cannot be reached: {text}"
    return None
