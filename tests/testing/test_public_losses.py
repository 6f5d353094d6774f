"""The page about public losses says what the installed ones do."""

import re

import pytest

import laws


def without_digits(text: str) -> str:
    """Last digits differ from machine to machine."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", "#", text)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_table_is_what_is_found() -> None:
    assert (
        laws.section(laws.PAGE.read_text(encoding="utf-8"), "public_losses") == laws.public_losses()
    )


@pytest.mark.slow
def test_the_kill_matrix_is_what_is_found() -> None:
    assert laws.section(laws.PAGE.read_text(encoding="utf-8"), "all_laws") == laws.all_laws()
