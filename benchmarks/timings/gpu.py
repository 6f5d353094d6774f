"""Check and time the loss on a CUDA GPU in four minutes: right first, then fast.

    python -m benchmarks.timings.gpu       what is missing in gpu.json, then the page

With `TRITON_INTERPRET=1` in the environment it tries itself: tiny sizes, on a CPU, no page.

Sections, in this order: agreement of every pipeline with fp64, twice, with uninitialised memory
filled with NaN; ceilings of the card; whole steps against peers; sizes of the blocks. Every
measurement is saved as it comes. After `--minutes` the rest is left for the next call, and named.
If something does not agree, nothing is timed.

Rules for what follows: a backward of `large` below 550 TFLOP/s is worth Gluon; a forward that
visits each pair once and is no faster than half of the backward is to be dropped; the faster of
the two forms of `large` sets the length of rows from which panels are used.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.pages import write_section
from benchmarks.timings import supcon
from unmuddle import supcon_loss
from unmuddle.supcon.backends import triton
from unmuddle.supcon.backends.triton import large, rows

OUT = Path(__file__).with_name("gpu.json")
IS_TOY = rows.IS_INTERPRETED
DEVICE = "cpu" if IS_TOY else "cuda"
ROWS = 300 if IS_TOY else 8200  # of a batch that takes `large`
SMALL = (70,) if IS_TOY else (1024, 2048, 4096)
BIG, LONG = (300, 300) if IS_TOY else (65536, 768)
REPEATS = 1 if IS_TOY else 10
Measurement = Callable[[], dict[str, Any]]


def batch(
    n: int, dim: int, dtype: torch.dtype, *, clustered: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows of eight classes, ignored ones among them; `clustered`: tight around a centre each."""
    random = torch.Generator().manual_seed(n + dim)
    labels = torch.randint(8, (n,), generator=random)
    x = torch.randn(n, dim, generator=random)
    if clustered:
        x = torch.randn(8, dim, generator=random)[labels] + 0.01 * x
    labels[::13] = -100
    return x.to(DEVICE, dtype), labels.to(DEVICE)


def step(loss: Callable[..., Tensor], x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient."""
    x = x.detach().requires_grad_()
    value = loss(x, labels)
    return value.detach(), torch.autograd.grad(value, x)[0]


def ours(
    x: Tensor, labels: Tensor, impl: Any = "triton", dtype: Any = None, **options: Any
) -> Tensor:
    """Return the loss of a backend, with products in a type if one is given."""
    with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
        return supcon_loss(x, labels, temperature=supcon.TEMPERATURE, impl=impl, **options)


def agreement(
    n: int, dim: int, dtype: torch.dtype, clustered: bool, **options: Any
) -> dict[str, Any]:
    """Compare with fp64 on the card, and two runs with each other."""
    x, labels = batch(n, dim, dtype, clustered=clustered)
    truth = step(partial(ours, impl="reference", **options), x.double(), labels)
    torch.use_deterministic_algorithms(True, warn_only=True)  # also fills new memory with NaN
    got, again = (step(partial(ours, **options), x, labels) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    # What pulls a row of a tight cluster cancels: errors are of the pulls, not of what is left.
    pull = 1 / (n * supcon.TEMPERATURE * float(x.double().norm(dim=1).min()))
    errors = [
        float((mine.double() - true).abs().max() / true.abs().max().clamp(min=scale))
        for mine, true, scale in zip(got, truth, (1e-30, pull), strict=True)
    ]
    bound = 8 * max(torch.finfo(dtype).eps, 3e-7)
    same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    return {"errors": errors, "bound": bound, "right": max(errors) < bound, "same_bits": same}


def seconds(call: Callable[[], object]) -> float:
    """Return the median seconds of a call after three."""
    for _ in range(1 if IS_TOY else 3):
        call()
    times: list[float] = []
    for _ in range(REPEATS):
        if IS_TOY:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1000)
    return statistics.median(times)


def product() -> dict[str, Any]:
    """Measure the rate of a large product in bf16."""
    size = 128 if IS_TOY else 8192
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return {"tflops": 2 * size**3 / seconds(lambda: a @ a) / 1e12}


def copy() -> dict[str, Any]:
    """Measure the rate of a copy, read and written."""
    a = torch.empty(2**20 if IS_TOY else 2**30, device=DEVICE, dtype=torch.uint8)
    b = torch.empty_like(a)
    return {"gb_per_s": 2 * len(a) / seconds(lambda: b.copy_(a)) / 1e9}


def timed(name: str, n: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Measure a whole step of a candidate: milliseconds and megabytes."""
    x, labels = batch(n, dim, torch.float32)
    labels = labels.clamp(min=0)  # peers ignore no row
    half = None if dtype == torch.float32 else dtype

    def under_autocast(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(DEVICE, half, enabled=half is not None):
                return loss(x, labels)

        return call

    losses: dict[str, Callable[..., Tensor]] = {
        "auto": partial(ours, impl="auto", dtype=half),
        "triton": partial(ours, dtype=half),
        "eager": under_autocast(supcon.dense_eager),
        "compiled eager": torch.compile(under_autocast(supcon.dense_eager), dynamic=False),
    }
    if name == "metric learning":
        from pytorch_metric_learning.losses import SupConLoss

        losses[name] = under_autocast(SupConLoss(temperature=supcon.TEMPERATURE))
    call = partial(step, losses[name], x, labels)
    found = {"ms": 1000 * seconds(call)}
    if not IS_TOY:
        torch.cuda.reset_peak_memory_stats()
        level = torch.cuda.memory_allocated()
        call()
        found["mb"] = (torch.cuda.max_memory_allocated() - level) / 1e6
    return found


def swept(dim: int, part: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Measure a step of `large` with other sizes of blocks."""
    x, labels = batch(BIG, dim, torch.bfloat16)
    tiling = large.choose_tiling(dim)
    tiling = tiling._replace(**{part: sizes})
    with mock.patch.object(large, "choose_tiling", return_value=tiling):
        forward = partial(ours, x, labels)
        with torch.no_grad():
            ahead = seconds(forward)
        whole = seconds(partial(step, ours, x, labels))
    return {"forward_ms": 1000 * ahead, "step_ms": 1000 * whole}


def measurements() -> Iterator[tuple[str, str, Measurement]]:
    """Yield section, name and call, in the order in which they are worth their time."""
    shapes = [(1025 if not IS_TOY else 70, 128, torch.float32), (ROWS, 128, torch.bfloat16)]
    shapes += [(ROWS, 256, torch.float16), (ROWS, 300, torch.bfloat16)]
    for n, dim, dtype in shapes:
        for clustered in (False, True):
            name = f"{n} x {dim}, {dtype}, {'clusters' if clustered else 'random'}"
            yield "correct", name, partial(agreement, n, dim, dtype, clustered)
    n, dim, dtype = shapes[0]
    for options in ({"positives": "in"}, {"denominator": "negatives"}):
        (name,) = options.items()
        yield (
            "correct",
            f"{n} x {dim}, {dtype}, {name[0]}={name[1]}",
            partial(agreement, n, dim, dtype, False, **options),
        )
    yield "ceilings", "product", product
    yield "ceilings", "copy", copy
    for dim in (128, LONG):
        yield (
            "whole",
            f"{BIG} x {dim}, bf16, triton",
            partial(timed, "triton", BIG, dim, torch.bfloat16),
        )
    for n in SMALL:
        for dtype in (torch.float32, torch.bfloat16):
            for name in ("auto", "triton", "eager", "compiled eager", "metric learning"):
                of = str(dtype).removeprefix("torch.")
                yield "whole", f"{n} x 128, {of}, {name}", partial(timed, name, n, 128, dtype)
    if IS_TOY:
        yield "sweep", "128: as chosen", partial(swept, 128, "sums", large.choose_tiling(128).sums)
        return
    for dim in (64, 128, 256, 768):
        chosen = large.choose_tiling(dim)
        for part in ("sums", "gradient"):
            sizes = getattr(chosen, part)
            for change in (
                {},
                {"num_stages": 3},
                {"num_warps": 4},
                {"num_warps": 8},
                *SMALLER[part],
            ):
                if set(change) <= set(sizes):
                    found = sizes | change
                    yield "sweep", f"{dim}: {part} {found}", partial(swept, dim, part, found)


SMALLER: dict[str, list[dict[str, int]]] = {
    "sums": [{"STREAMED": 128, "num_warps": 8}, {"STREAMED": 32}],
    "gradient": [{"BLOCK_M": 64, "num_warps": 4}, {"BLOCK_N": 64}],
}


def table(results: dict[str, Any]) -> str:
    """Return what was measured as Markdown."""
    lines = ["| | | |", "|---|---|---|"]
    for section, found in results.items():
        if section != "environment":
            for name, row in found.items():
                cells = ", ".join(f"{key} {_short(value)}" for key, value in row.items())
                lines.append(f"| {section} | {name} | {cells} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Measure what is missing while there is time; 1 if something does not agree or is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=OUT)
    a = parser.parse_args()
    if not IS_TOY and not torch.cuda.is_available():
        sys.exit("no CUDA GPU; with TRITON_INTERPRET=1 tiny sizes run on a CPU")
    stop = time.monotonic() + 60 * a.minutes
    results: dict[str, Any] = json.loads(a.out.read_text()) if a.out.exists() else {}
    card = "interpreter" if IS_TOY else torch.cuda.get_device_name()
    results["environment"] = f"{card}, torch {torch.__version__}"
    triton.LARGE = 0 if IS_TOY else triton.LARGE
    left: list[str] = []
    for section, name, measure in measurements():
        found = results.setdefault(section, {})
        if section != "correct" and not all(row["right"] for row in results["correct"].values()):
            print("something does not agree: nothing is timed")
            return 1
        if name in found:
            continue
        if time.monotonic() > stop:
            left.append(f"{section}: {name}")
            continue
        try:
            found[name] = measure()
        except Exception as error:  # sizes that a card does not take
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            found[name] |= {"right": False} if section == "correct" else {}
        print(f"{section}: {name}: {found[name]}", flush=True)
        a.out.write_text(json.dumps(results, indent=1) + "\n")
    if left:
        print("left for another call:", *left, sep="\n  ")
    if not IS_TOY:
        write_section("benchmarks.md", "gpu", f"{table(results)}\n\n{results['environment']}.")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
