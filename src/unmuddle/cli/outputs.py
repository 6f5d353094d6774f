"""Checks of paths that a command is to write."""

from pathlib import Path

from unmuddle.recipe.errors import UsageError
from unmuddle.report import is_report


def check_file(option: str, path: Path) -> None:
    """Raise a UsageError unless a file can be written there."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: expected a file in a folder that is there")


def check_report(option: str, path: Path) -> None:
    """Raise a UsageError if another file than a page of this package would be overwritten."""
    if path.exists() and not is_report(path):
        raise UsageError(f"{option} {path}: exists and is not a page of unmuddle")
