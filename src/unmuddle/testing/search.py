"""Search for a batch that violates a law.

Batches are drawn once for all laws. Hypothesis shrinks a counter-example.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

# Imported first, because its error message says how to install hypothesis.
from unmuddle.testing import strategies  # isort: skip
from hypothesis import Phase, given, seed, settings
from hypothesis.errors import Flaky

from unmuddle.testing.examples import Batch

if TYPE_CHECKING:
    from unmuddle.testing.check import Result

SPARE = 4  # batches drawn per batch wanted, because a law does not apply to some of them


class _BrokenError(Exception):
    """Raised to tell Hypothesis that a batch violates the law."""


def search(attempt: "Callable[[Batch], Result]", profile: str | None) -> "Result":
    """Return the smallest failure of `attempt`, else a pass, else a result not checked."""
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
    # A loss that is NaN for every batch to which the law applies fails the law.
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
    """Call `look` on the same batches in every run, and on smaller ones once it raises."""

    @seed(0)
    @settings(
        strategies.profile("fast"),  # except for the number of examples
        max_examples=SPARE * wanted,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(strategies.batches())
    def draw(batch: Batch) -> None:
        look(batch)

    draw()
