"""Parser of a command, made from the signature and the docstring of its function."""

import inspect
from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NewType, NoReturn, get_args, get_origin, get_type_hints

OutputFile = NewType("OutputFile", Path)  # a file that a command writes


class Help(RawDescriptionHelpFormatter):
    """Help formatter that lists options by name only, without metavars."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=118)

    def _format_action_invocation(self, action: Action) -> str:
        names = action.option_strings or [super()._format_action_invocation(action)]
        return names[0]


class Parser(ArgumentParser):
    """Argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(command: Any) -> Parser:
    """Create the parser of a command: a module with a function `run` and examples.

    The docstring of `run` describes the command and its options. Keyword-only parameters become
    options, the others arguments. An option that is not given is not passed on.
    """
    run = command.run
    made = Parser(
        prog=f"unmuddle {command.__name__.rpartition('.')[2]}",
        description=(inspect.getdoc(run) or "").partition("\n\nArgs:")[0],
        epilog=command.__doc__.partition("\n\n")[2],
        formatter_class=Help,
        allow_abbrev=False,
    )
    parameters = inspect.signature(run).parameters
    for name, (hint, text) in documented(run).items():
        if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
            add_option(made, name, hint, text, parameters[name].default)
        else:
            number = "+" if get_origin(hint) is Sequence else None
            made.add_argument(name, type=_type(hint), help=text, nargs=number)
    if hasattr(command, "add_options"):
        command.add_options(made)
    return made


def documented(source: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """Return the type and the description of each parameter of a function or dataclass."""
    import docstring_parser  # not needed for the list of commands

    hints, found = get_type_hints(source), docstring_parser.parse_from_object(source).params
    return {
        p.arg_name: (hints[p.arg_name], p.description or "") for p in found if p.arg_name in hints
    }


def add_option(parser: Parser, name: str, hint: Any, text: str, default: Any) -> None:
    """Add an option of type `T`, `T | None`, `Sequence[T]` or `Literal`, and show its default."""
    hint = _given(hint)
    choices = get_args(hint) if get_origin(hint) is Literal else None
    if choices:
        text += f": {' '.join(choices)}"
    more: dict[str, Any] = {"required": True} if default is inspect.Parameter.empty else {}
    if get_origin(hint) is Sequence:
        more, default = {"nargs": "*"}, " ".join(default)  # pyright: ignore
    if hint is bool:  # may be given with or without a value
        more = {"nargs": "?", "const": True}
    if not any(default is none for none in (None, False, inspect.Parameter.empty)):
        text += f" [{default}]"
    text = " ".join(text.split())
    names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(
        *names, type=_type(hint), choices=choices, help=text, default=SUPPRESS, **more
    )


def _given(hint: Any) -> Any:
    """Return `T` for `T | None`."""
    return get_args(hint)[0] if NoneType in get_args(hint) else hint


def _type(hint: Any) -> Callable[[str], Any]:
    """Return the conversion of a text to `T`, or to the items of `Sequence[T]`."""
    if get_origin(hint) is Literal:
        return str
    kind = get_args(hint)[0] if get_origin(hint) is Sequence else hint
    special: dict[Any, Any] = {bool: _boolean, Path: path_option, OutputFile: output_file}
    return special.get(kind, kind)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ArgumentTypeError(f"expected true or false, got {text}")
    return text.lower() == "true"


def path_option(text: str) -> Path:
    """Return a path, with `~` expanded."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from error


def output_file(text: str) -> Path:
    """Return the path of a file that can be written."""
    path = path_option(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(f"{text}: expected a file in a folder that is there")
    return path
