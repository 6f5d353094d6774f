"""Look for a batch that breaks a law: drawn once for all laws, made small by hypothesis."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

# First, because it says how to install hypothesis.
from unmuddle.testing import strategies  # isort: skip
from hypothesis import Phase, given, seed, settings
from hypothesis.errors import Flaky

from unmuddle.testing.examples import Batch

if TYPE_CHECKING:
    from unmuddle.testing.check import Result

SPARE = 4  # batches drawn for each that is wanted, since a law says nothing about some


class _BrokenError(Exception):
    """Tells hypothesis that the batch is one of those looked for."""


def search(attempt: "Callable[[Batch], Result]", profile: str | None) -> "Result":
    """Return the smallest failure of `attempt`, else a pass, else that nothing applies."""
    wanted = strategies.profile(profile).max_examples
    results: list[Result] = []
    passed = 0
    for batch in _drawn(wanted):
        results.append(attempt(batch))
        if results[-1].status == "failed":
            return _smallest(attempt, results[-1], wanted)
        passed += results[-1].status == "passed"
        if passed == wanted:
            break
    if passed:
        return replace(next(r for r in results if r.status == "passed"), batches=passed)
    # A loss that is NaN wherever the law is asked of it passes no law.
    nowhere = next((result for result in results if result.error), None)
    return results[0] if nowhere is None else replace(nowhere, status="failed")


@cache
def _drawn(wanted: int) -> list[Batch]:
    batches: list[Batch] = []
    _draw(batches.append, wanted)
    return batches


def _smallest(attempt: "Callable[[Batch], Result]", first: "Result", wanted: int) -> "Result":
    failures = [first]

    def look(batch: Batch) -> None:
        result = attempt(batch)
        if result.status == "failed":
            failures.append(result)
            raise _BrokenError

    with suppress(_BrokenError, Flaky):
        _draw(look, wanted)
    return failures[-1]  # what hypothesis tries last is the smallest


def _draw(look: Callable[[Batch], None], wanted: int) -> None:
    """Show `look` the same batches every time, and smaller ones once it raises."""

    @seed(0)
    @settings(
        strategies.profile("fast"),  # but for the number
        max_examples=SPARE * wanted,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(strategies.batches())
    def draw(batch: Batch) -> None:
        look(batch)

    draw()
