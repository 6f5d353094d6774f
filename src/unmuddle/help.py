"""How `--help` looks: a line an option, with its choices and its default; how errors read."""

import re
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from typing import Any, Literal, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

WIDTH = 118


class Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Without types and metavariables, which the text says better."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=24, width=WIDTH, **options)

    def _format_action_invocation(self, action: Action) -> str:
        if action.option_strings:
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: Action) -> str:
        told = action.help or ""
        if not action.option_strings:
            return told
        allowed = list(action.choices or ())
        hint = getattr(action, "_typehint", None)
        if get_origin(hint) is Literal:
            allowed = list(get_args(hint))
        if allowed:
            told += f": {' '.join(allowed)}"
        # Help and switches have no default worth a word.
        if action.default is not False and action.default not in (None, SUPPRESS):
            told += " [%(default)s]"
        return told


def plain(error: str) -> str:
    """A parser's error in the words of the command line, not of Python's types."""
    found = re.fullmatch(
        r'Parser key "(\w+)":\s+Expected an? (.*)\. Got value: (.*)', error, re.DOTALL
    )
    if found:
        name, expected, value = found.groups()
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
        expected = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", expected)
        return f"--{name}: expected {expected}, got {value}"
    return re.sub(r"(are required: )\w+\.", r"\1", error)
