"""The page about public losses says what the installed ones do."""

import re

import pytest

from benchmarks import laws, pages
from unmuddle.testing import LAWS


def without_digits(text: str) -> str:
    """Last digits differ from machine to machine."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", "#", text)


def page_has(section: str) -> str:
    return pages.section(laws.PAGE, section)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_table_is_what_is_found() -> None:
    assert without_digits(page_has("public_losses")) == without_digits(laws.public_losses())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_table_of_gathers_is_what_is_found() -> None:
    assert without_digits(page_has("public_gathers")) == without_digits(laws.public_gathers())


def test_every_law_is_on_the_page() -> None:
    assert re.findall(r"^\| `(\w+)` \|", page_has("all_laws"), re.M) == list(LAWS)


@pytest.mark.slow
def test_the_kill_matrix_is_what_is_found() -> None:
    assert page_has("all_laws") == laws.all_laws()
