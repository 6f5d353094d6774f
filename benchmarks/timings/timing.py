"""Time callables against each other in one run, and what one call of each takes in memory."""

import ctypes
import gc
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Set by `run.py --base`, which compares ours with ours.
ALONE = "UNMUDDLE_BENCH_ALONE" in os.environ
DEVICE = os.environ.get("UNMUDDLE_BENCH_DEVICE", "cpu")  # set by `run.py --device`

Calls = dict[str, Callable[..., object]]


def take_turns(calls: Calls, *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate's calls after a first one, in turns of random order."""
    turns, order = list(calls.items())[: 1 if ALONE else None], random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name, _ in turns}
    # As in any training, a large block was freed before: malloc no longer returns smaller ones.
    torch.empty(30 * 2**20, dtype=torch.uint8)
    for repeat in range(repeats + 1):
        order.shuffle(turns)
        for name, call in turns:
            start = time.perf_counter()
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if repeat > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(seconds: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """Of each candidate: median seconds, and quartiles of how many times as long as the first."""
    ours = seconds["unmuddle"]
    found: dict[str, Any] = {}
    for name, values in seconds.items():
        ratios = [value / mine for value, mine in zip(values, ours, strict=True)]
        quartiles = (
            statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
        )
        found[name] = {"seconds": statistics.median(values), "ratio": quartiles}
    return {"candidates": found, **more}


def extra_megabytes(call: Callable[[], object]) -> float:
    """The peak in one call minus the level before: the device's, on a CPU the process's (Linux)."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        level = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - level) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    level = _megabytes("VmRSS")
    call()
    return _megabytes("VmHWM") - level


def _megabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
