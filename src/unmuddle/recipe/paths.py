"""Paths given by the user."""

from pathlib import Path

from unmuddle.recipe.errors import UsageError, refusing


def user_path(option: str, text: str) -> Path:
    """Return the path with `~` expanded.

    Raises:
        UsageError: the path is not usable. The message names the option.
    """
    with refusing(f"{option} {text!r}: not a usable path"):
        path = Path(text).expanduser()
        path.exists()
    return path


def check_outside(option: str, path: Path, data: str) -> None:
    """Raise a UsageError if an output path lies in the folder of the data set."""
    _, _, root = data.partition(":")
    if root and path.resolve().is_relative_to(user_path("--data", root).resolve()):
        raise UsageError(f"{option} {path}: is in the folder of --data {data}")
