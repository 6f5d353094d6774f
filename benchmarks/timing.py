"""Time callables against each other in one run."""

import statistics
import time
from collections.abc import Callable


def alternating_medians(
    calls: dict[str, Callable[[], object]], *, repeats: int
) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
