"""Time callables against each other in one run."""

import random
import statistics
import time
from collections.abc import Callable


def alternating_medians(
    calls: dict[str, Callable[[], object]], *, repeats: int
) -> dict[str, float]:
    """Median seconds of each call; in turns of random order, so that noise hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    turns, order = list(calls.items()), random.Random(0)
    for _ in range(repeats):
        order.shuffle(turns)
        for name, call in turns:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
