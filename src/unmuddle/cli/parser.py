"""Parser of a command."""

from argparse import Action, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path
from typing import NoReturn


class Help(RawDescriptionHelpFormatter):
    """Help formatter that lists options by name only, without metavars."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=118)

    def _format_action_invocation(self, action: Action) -> str:
        return ", ".join(action.option_strings) or super()._format_action_invocation(action)


class Parser(ArgumentParser):
    """Argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(prog: str, usage: str, description: str, examples: str = "") -> Parser:
    """Create a parser whose help ends with examples."""
    return Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=Help,
        allow_abbrev=False,
    )


def path_option(text: str) -> Path:
    """Return a path, with `~` expanded."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from error
