"""SupConLoss, forward and backward, against its peers: agreement first, then time and memory."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timings.timing import ALONE, DEVICE, compared, extra_megabytes, take_turns
from unmuddle import doctor, supcon_loss

TEMPERATURE = 0.07
SIZES = [(64, 128), (128, 128), (256, 32), (256, 128), (256, 512), (512, 128), (1024, 128)]
SIZES += [(2048, 128), (4096, 32), (4096, 128), (4096, 512), (8192, 128), (65536, 128)]
LARGEST = {"eager": 8192, "metric learning": 4096, "bare products": 8192}
LARGEST |= {"compiled unmuddle": 8192, "compiled eager": 8192}

Loss = Callable[[Tensor, Tensor], Tensor]


def dense_eager(features: Tensor, labels: Tensor) -> Tensor:
    """The code that most users have."""
    return doctor.dense_eager(features, labels, TEMPERATURE)


def ours(features: Tensor, labels: Tensor) -> Tensor:
    """What a user gets without choosing."""
    return supcon_loss(features, labels, temperature=TEMPERATURE)


def losses(n: int) -> dict[str, Loss]:
    """Those that run in reasonable time and memory at N = n, ours first."""
    if ALONE:
        return {"unmuddle": ours}
    from pytorch_metric_learning.losses import SupConLoss

    peers: dict[str, Loss] = {
        "compiled unmuddle": torch.compile(ours, dynamic=False),
        "eager": dense_eager,
        "compiled eager": torch.compile(dense_eager, dynamic=False),
        "metric learning": SupConLoss(temperature=TEMPERATURE),
    }
    return {"unmuddle": ours} | {k: f for k, f in peers.items() if n <= LARGEST[k]}


def measure(n: int, dim: int) -> dict[str, Any]:
    """Times of a training step of each candidate, and the megabytes that one takes."""
    torch.manual_seed(n)
    features = torch.randn(n, dim, device=DEVICE, requires_grad=True)
    labels = torch.randint(8, (n,), device=DEVICE)

    def step(loss: Loss) -> Tensor:
        return torch.autograd.grad(loss(features, labels), features)[0]

    calls = {name: partial(step, loss) for name, loss in losses(n).items()}
    if "eager" in calls:
        expected = calls["eager"]()
        for call in calls.values():
            torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-6)
    megabytes = {name: extra_megabytes(call) for name, call in calls.items()}
    if n <= LARGEST["bare products"] and not ALONE:
        calls["bare products"] = partial(bare_products, features.detach())
    repeats = 200 if n <= 256 else 40 if n <= 1024 else 25 if n <= 4096 else 5 if n <= 8192 else 1
    return compared(take_turns(calls, repeats=repeats), megabytes=megabytes)


def bare_products(z: Tensor) -> None:
    """4 N² D operations: what a computation without tricks must do."""
    out = torch.zeros_like(z)
    for start in range(0, len(z), 1024):
        rows = slice(start, start + 1024)
        out[rows].addmm_(z[rows] @ z.T, z)


CASES = {f"N = {n:,}, D = {dim}": partial(measure, n, dim) for n, dim in SIZES}


def growth(small: int = 8192, large: int = 32768, dim: int = 128) -> float:
    """The power of N with which the time of a step grows, the two sizes taking turns."""

    def step(x: Tensor, labels: Tensor) -> None:
        torch.autograd.grad(ours(x, labels), x)

    batches = {
        n: (torch.randn(n, dim, requires_grad=True), torch.arange(n) % 8) for n in (small, large)
    }
    seconds = take_turns({str(n): partial(step, *b) for n, b in batches.items()}, repeats=5)
    ratio = sorted(seconds[str(large)])[2] / sorted(seconds[str(small)])[2]
    return math.log(ratio) / math.log(large / small)


def main() -> None:
    """Print how time grows; `benchmarks/timings/run.py` measures the cases."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    print(f"time from N = 8,192 to 32,768, D = 128: N^{growth():.2f}")


if __name__ == "__main__":
    main()
