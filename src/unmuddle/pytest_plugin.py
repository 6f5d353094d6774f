"""pytest plugin: the option `--laws-profile`, and a fixture that checks a loss.

pytest loads the plugin whenever the package is installed, so torch is imported only when needed.
"""

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from unmuddle.testing import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--laws-profile`."""
    parser.getgroup("unmuddle").addoption(
        "--laws-profile",
        choices=("fast", "ci", "thorough"),
        help="number of batches to check each law on: fast (50), ci (200), thorough (2,000)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the profile for tests that do not name one."""
    if profile := config.getoption("--laws-profile"):
        os.environ["UNMUDDLE_HYPOTHESIS_PROFILE"] = profile


@pytest.fixture
def assert_laws() -> "Callable[..., Report]":
    """Return a function that calls `check_loss` and fails the test if a law is broken.

    The function returns the report.
    """

    def check(fn: "Callable[..., Any]", **options: Any) -> "Report":
        from unmuddle.testing import check_loss

        report = check_loss(fn, **options)
        report.raise_if_failed()
        return report

    return check
