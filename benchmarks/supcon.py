"""SupConLoss against its peers on this machine: agreement first, then time and peak memory.

Every size runs in a process of its own; within it the candidates take turns.
"""

import argparse
import ctypes
import gc
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timing import alternating_medians
from unmuddle import supcon_loss

TEMPERATURE = 0.07
SIZES = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
DIMS = {256: [32, 512], 4096: [32, 512]}  # besides 128
LARGEST = {"eager": 16384, "compiled eager": 32768, "metric learning": 8192}

Loss = Callable[[Tensor, Tensor], Tensor]


def dense_eager(features: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2 as usually written: several N x N matrices."""
    z = torch.nn.functional.normalize(features)
    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = ~torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & others
    log_probability = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -((log_probability * positive).sum(1) / positive.sum(1)).mean()


def ours(features: Tensor, labels: Tensor) -> Tensor:
    """What a user gets without choosing."""
    return supcon_loss(features, labels, temperature=TEMPERATURE)


def candidates(n: int) -> dict[str, Loss]:
    """Those that run in reasonable time and memory at N = n."""
    losses: dict[str, Loss] = {"eager": dense_eager}
    losses["compiled eager"] = torch.compile(dense_eager, dynamic=False)
    try:
        from pytorch_metric_learning.losses import SupConLoss

        losses["metric learning"] = SupConLoss(temperature=TEMPERATURE)
    except ImportError:
        pass
    return {"unmuddle": ours} | {k: f for k, f in losses.items() if n <= LARGEST[k]}


def measure(n: int, dim: int) -> dict[str, Any]:
    """Median seconds of each candidate and the megabytes that one step of it takes."""
    torch.manual_seed(n)
    features, labels = torch.randn(n, dim, requires_grad=True), torch.randint(8, (n,))
    losses = candidates(n)
    forward = {name: (lambda f=loss: f(features, labels)) for name, loss in losses.items()}
    both = {name: (lambda f=f: _backward(f(), features)) for name, f in forward.items()}

    expected = both["eager" if "eager" in both else "unmuddle"]()
    for step in both.values():
        torch.testing.assert_close(step(), expected, rtol=1e-3, atol=1e-6)

    megabytes = {name: _extra_memory(step) for name, step in both.items()}
    repeats = 200 if n <= 256 else 40 if n <= 1024 else 9 if n <= 4096 else 3
    seconds = {"both": alternating_medians(both, repeats=repeats)}
    if n <= 8192:
        seconds["forward"] = alternating_medians(forward, repeats=repeats)
        backward = {name: (lambda value: _backward(value, features)) for name in losses}
        seconds["backward"] = alternating_medians(backward, repeats=repeats, before=forward)
        products = {"products": lambda: _bare_products(features.detach())}
        products["unmuddle"] = both["unmuddle"]
        seconds["products"] = alternating_medians(products, repeats=repeats)
    return {"n": n, "dim": dim, "seconds": seconds, "megabytes": megabytes}


def growth(small: int = 8192, large: int = 32768, dim: int = 128) -> float:
    """The power of N with which the time of a step grows, the two sizes taking turns."""
    steps: dict[str, Callable[[], Tensor]] = {}
    for n in (small, large):
        x, labels = torch.randn(n, dim, requires_grad=True), torch.randint(8, (n,))
        steps[str(n)] = lambda x=x, labels=labels: _backward(ours(x, labels), x)
    seconds = alternating_medians(steps, repeats=5)
    return math.log(seconds[str(large)] / seconds[str(small)]) / math.log(large / small)


def _backward(value: Tensor, features: Tensor) -> Tensor:
    return torch.autograd.grad(value, features)[0]


def _bare_products(z: Tensor) -> None:
    """4 N² D operations: what forward and backward cannot do without."""
    out = torch.zeros_like(z)
    for start in range(0, len(z), 1024):
        rows = slice(start, start + 1024)
        out[rows].addmm_(z[rows] @ z.T, z)


def _extra_memory(call: Callable[[], object]) -> float:
    """Megabytes: the process's peak in one call minus its level before (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    level = _memory("VmRSS")
    call()
    return _memory("VmHWM") - level


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def table_row(row: dict[str, Any]) -> str:
    """Milliseconds of ours, how many times as long the others take, ours over bare products."""
    both, products, memory = (
        row["seconds"]["both"],
        row["seconds"].get("products"),
        row["megabytes"],
    )
    mine = both["unmuddle"]
    peers = [f"{both[k] / mine:.2f}, {memory[k]:.0f} MB" if k in both else "" for k in LARGEST]
    bare = f"{products['unmuddle'] / products['products']:.2f}" if products else ""
    cells = [
        row["n"],
        row["dim"],
        f"{mine * 1e3:.2f} ms, {memory['unmuddle']:.0f} MB",
        *peers,
        bare,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def save(result: dict[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over N, all axes logarithmic."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name in ["unmuddle", *LARGEST]:
        points = [row for row in rows if row["dim"] == 128 and name in row["megabytes"]]
        sizes = [row["n"] for row in points]
        left.loglog(sizes, [row["seconds"]["both"][name] for row in points], "o-", label=name)
        right.loglog(sizes, [row["megabytes"][name] for row in points], "o-")
    left.set(ylabel="forward + backward, seconds")
    right.set(ylabel="extra memory, MB")
    for axes in (left, right):
        axes.set(xlabel="N (D = 128)")
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print a Markdown table; write JSON and draw a plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--growth", action="store_true", help="only how time grows with N")
    parser.add_argument("--one", type=int, nargs=2, metavar=("N", "D"), help="measure one size")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    if arguments.growth:
        print(f"time from N = 8,192 to 32,768, D = 128: N^{growth():.2f}")
        return
    rows: list[dict[str, Any]] = []
    print(f"SupConLoss, fp32, {environment()}\n")
    print(" | ".join(["| N | D | unmuddle", *LARGEST, "unmuddle / bare products |"]))
    print("|---" * (len(LARGEST) + 4) + "|")
    for n in arguments.sizes:
        for dim in [128, *DIMS.get(n, [])]:
            command = [sys.executable, __file__, "--one", str(n), str(dim)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(table_row(rows[-1]), flush=True)
            if arguments.json:
                save({"environment": environment(), "rows": rows}, arguments.json)
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
