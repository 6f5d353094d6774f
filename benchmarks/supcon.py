"""SupConLoss against its peers on this machine: agreement first, then time and peak memory.

Every measurement of a size runs in its own process; within it the candidates take turns.
"""

import argparse
import json
import platform
import resource
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
LARGEST = {"eager": 8192, "compiled eager": 8192, "metric learning": 4096}

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
    """Seconds of each candidate, and the memory that one step of ours takes."""
    torch.manual_seed(n)
    features, labels = torch.randn(n, dim, requires_grad=True), torch.randint(8, (n,))

    def step(loss: Loss) -> Tensor:
        return torch.autograd.grad(loss(features, labels), features)[0]

    memory = _extra_memory(lambda: step(ours))
    losses = candidates(n)
    expected = step(losses.get("eager", ours))
    for loss in losses.values():
        torch.testing.assert_close(step(loss), expected, rtol=1e-3, atol=1e-6)

    repeats = 200 if n <= 256 else 40 if n <= 1024 else 9 if n <= 8192 else 3
    both = {name: (lambda f=loss: step(f)) for name, loss in losses.items()}
    forward = {name: (lambda f=loss: f(features, labels)) for name, loss in losses.items()}
    seconds = {"both": alternating_medians(both, repeats=repeats)}
    if n <= 8192:
        seconds["forward"] = alternating_medians(forward, repeats=repeats)
        products = {"products": lambda: _bare_products(features.detach())} | both
        seconds["products"] = alternating_medians(products, repeats=repeats)
    return {"n": n, "dim": dim, "seconds": seconds, "extra_megabytes": memory}


def _bare_products(z: Tensor) -> None:
    """4 N² D operations: what forward and backward cannot do without."""
    out = torch.zeros_like(z)
    for start in range(0, len(z), 1024):
        rows = slice(start, start + 1024)
        out[rows].addmm_(z[rows] @ z.T, z)


def _extra_memory(call: Callable[[], object]) -> float:
    """Megabytes: the process's peak in one call minus its level before."""
    warm = torch.randn(600, 8, requires_grad=True)
    torch.autograd.grad(ours(warm, torch.arange(600) % 8), warm)
    level = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - level / 2**20


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
    both, products = row["seconds"]["both"], row["seconds"].get("products")
    mine = both["unmuddle"]
    times = [f"{both[peer] / mine:.2f}" if peer in both else "" for peer in LARGEST]
    bare = f"{products['unmuddle'] / products['products']:.2f}" if products else ""
    cells = [row["n"], row["dim"], f"{mine * 1e3:.2f}", *times, bare]
    return "| " + " | ".join(map(str, cells)) + f" | {row['extra_megabytes']:.0f} |"


def save(result: dict[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time over N, both axes logarithmic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in ["unmuddle", *LARGEST]:
        points = [
            (row["n"], row["seconds"]["both"][name] * 1e3)
            for row in rows
            if row["dim"] == 128 and name in row["seconds"]["both"]
        ]
        if points:
            axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="N (D = 128)", ylabel="forward + backward, ms")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print a Markdown table; write JSON and draw a plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", type=int, nargs=2, metavar=("N", "D"), help="measure one size")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    rows: list[dict[str, Any]] = []
    print(f"SupConLoss, fp32, {environment()}\n")
    print(" | ".join(["| N | D | unmuddle, ms", *LARGEST, "bare products | extra memory, MB |"]))
    print("|---" * (len(LARGEST) + 5) + "|")
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
