"""Time callables against each other in one run."""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any


def alternating_medians(
    calls: dict[str, Callable[..., object]],
    *,
    repeats: int,
    before: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, float]:
    """Median seconds of each call, in turns of random order, so that noise hits all.

    `before`: what is called, untimed, for the argument of each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    turns, order = list(calls.items()), random.Random(0)
    for repeat in range(repeats + 1):
        order.shuffle(turns)
        for name, call in turns:
            arguments = (before[name](),) if before else ()
            start = time.perf_counter()
            call(*arguments)
            if repeat > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
