"""Sections of the documentation's pages that commands write."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"


def section(page: str, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- end -->` in a page, such as "laws.md"."""
    found = _marks(name).search((PAGES / page).read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page}: no <!-- {name} --> ... <!-- end -->")
    return found[2].strip()


def write_section(page: str, name: str, text: str) -> None:
    """Put another text between the marks."""
    section(page, name)  # which has to be there
    path = PAGES / page
    old = path.read_text(encoding="utf-8")
    new = _marks(name).sub(lambda found: f"{found[1]}\n{text}\n\n{found[3]}", old)
    path.write_text(new, encoding="utf-8")


def write_sections(page: str, sections: dict[str, Callable[[Any], str]], rows: Any) -> None:
    """Write every section of a page from the rows of its results."""
    for name, text in sections.items():
        write_section(page, name, text(rows))


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)
