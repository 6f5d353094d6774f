"""What tests share: problems, data sets in their owners' layouts, losses, networks, processes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def thinned(values: Iterable[Any], every: int) -> list[Any]:
    """Parameters, all but the first of every so many for `make test-all` only."""
    return [
        value
        if place % every == 0
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow
        )
        for place, value in enumerate(values)
    ]
