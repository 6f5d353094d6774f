"""Checks of output paths."""

from pathlib import Path

from unmuddle.recipe.errors import UsageError
from unmuddle.report.html import is_report


def check_report(option: str, path: Path) -> None:
    """Raise a UsageError if the path is a file other than a page of this package."""
    if path.exists() and not is_report(path):
        raise UsageError(f"{option} {path}: exists and is not a page of unmuddle")
