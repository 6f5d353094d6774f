"""What tests share: problems, data sets in their owners' layouts, losses, networks, processes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def thinned(values: Iterable[Any], every: int) -> list[Any]:
    """Mark all parameters slow except every `every`-th, so that `make test-all` alone runs them."""
    return [
        value
        if place % every == 0
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow
        )
        for place, value in enumerate(values)
    ]
