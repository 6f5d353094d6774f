"""Measure the parts against their peers: agreement first, then every case in a process of its own.

    python -m benchmarks.timings.run               all; the tables go into docs/pages/benchmarks.md
    python -m benchmarks.timings.run --only arm    one of supcon, arm, uerm, recipe
    python -m benchmarks.timings.run --base REV    ours, at a commit and as it stands, by turns
    python -m benchmarks.timings.run --device cuda the loss, ARM and UERM on a GPU

Results with hardware, versions and commit are in benchmarks/timings/results.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import unmuddle
from benchmarks.pages import PAGES, ROOT, write_section

GROUPS = ("supcon", "arm", "uerm", "recipe")
ON_GPU = ("supcon", "arm", "uerm")
RESULTS = Path(__file__).with_name("results.json")
LEAST_BAND = 0.05  # of a ratio between commits: what two runs of one differ by in any case
ROUNDS = 2  # of each commit

Row = dict[str, Any]


def check_agreement() -> None:
    """Exit if anything computes something else than it should: then its speed means nothing."""
    from unmuddle.doctor import checks

    wrong = [f"{name}: {error}" for name, error in checks() if error]
    if wrong:
        sys.exit("not measured, since something disagrees:\n" + "\n".join(wrong))


def environment(device: str) -> dict[str, str]:
    """What the figures depend on."""
    import torch

    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    where = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": f"{torch.get_num_threads()} threads",
    }
    if device == "cuda":
        where = {"gpu": torch.cuda.get_device_name()}
    return where | {
        "torch": f"torch {torch.__version__}",
        "python": f"Python {platform.python_version()}",
        "commit": f"commit {commit}",
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def cases(groups: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Group and name of every case."""
    for group in groups:
        yield from ((group, name) for name in import_module(f"benchmarks.timings.{group}").CASES)


def measured(
    group: str,
    name: str,
    source: Path = ROOT / "src",
    *,
    alone: bool = False,
    device: str = "cpu",
) -> Row:
    """A case, in a process of its own, of the package in `source`; `alone`: without its peers."""
    path = os.pathsep.join(filter(None, [str(source), str(ROOT), os.environ.get("PYTHONPATH")]))
    extra = {"PYTHONPATH": path, "UNMUDDLE_BENCH_DEVICE": device}
    extra |= {"UNMUDDLE_BENCH_ALONE": "1"} if alone else {}
    command = [sys.executable, "-m", "benchmarks.timings.run", "--case", group, name]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | extra
    )
    row = json.loads(done.stdout.splitlines()[-1])
    if not Path(row.pop("package")).is_relative_to(source.resolve()):
        sys.exit(f"{name}: measured another unmuddle than that in {source}")
    return row


def table(rows: dict[str, Row]) -> str:
    """Milliseconds and megabytes of ours, and how many times as long the others take."""
    peers = list(dict.fromkeys(peer for row in rows.values() for peer in row["candidates"]))[1:]
    lines = ["| " + " | ".join(["", "unmuddle", *peers]) + " |", "|---" * (len(peers) + 2) + "|"]
    for name, row in rows.items():
        ours = f"{1000 * row['candidates']['unmuddle']['seconds']:,.2f} ms"
        cells = [ours + _memory(row, "unmuddle"), *(_times_as_long(row, peer) for peer in peers)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _times_as_long(row: Row, peer: str) -> str:
    """The median, and quartiles in brackets."""
    if peer not in row["candidates"]:
        return ""
    ratios = row["candidates"][peer]["ratio"]
    low, middle, high = (f"{ratio:,.{0 if ratio > 99 else 2}f}" for ratio in ratios)
    return f"{middle} ({low} to {high}){_memory(row, peer)}"


def _memory(row: Row, name: str) -> str:
    megabytes = row.get("megabytes", {})
    return f", {megabytes[name]:,.0f} MB" if name in megabytes else ""


def sections(results: dict[str, Any]) -> dict[str, str]:
    """What the page says, by the name of its section."""
    return {
        group: f"{table(found['rows'])}\n\n{', '.join(found['environment'].values())}."
        for group, found in results.items()
    }


def draw(rows: dict[str, Row], path: Path) -> None:
    """SupConLoss at D = 128: time and memory over N, all axes logarithmic."""
    import matplotlib.pyplot as plt

    points = {
        int(name.removeprefix("N = ").removesuffix(", D = 128").replace(",", "")): row
        for name, row in rows.items()
        if name.endswith(", D = 128")
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name in next(iter(points.values()))["megabytes"]:
        known = {n: row for n, row in points.items() if name in row["megabytes"]}
        seconds = [row["candidates"][name]["seconds"] for row in known.values()]
        left.loglog(list(known), seconds, "o-", label=name)
        right.loglog(list(known), [row["megabytes"][name] for row in known.values()], "o-")
    left.set(ylabel="forward + backward, seconds")
    right.set(ylabel="extra memory, MB")
    for axes in (left, right):
        axes.set(xlabel="N (D = 128)")
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)


def save(results: dict[str, Any]) -> None:
    """Write JSON, whole or not at all, and what the page says."""
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(RESULTS)
    for name, text in sections(results).items():
        write_section("benchmarks.md", name, text)
    if "supcon" in results:
        draw(results["supcon"]["rows"], PAGES / "bench-supcon.png")


def measure_all(groups: tuple[str, ...], device: str) -> None:
    """Every case against its peers; saved group by group."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    where = environment(device)
    for group in groups:
        rows: dict[str, Row] = {}
        for _, name in cases((group,)):
            rows[name] = measured(group, name, device=device)
            print(f"{group}: {table({name: rows[name]}).splitlines()[-1]}", flush=True)
        key = group if device == "cpu" else f"{group}-{device}"
        results[key] = {"environment": where, "rows": rows}
        save(results)


def verdict(base: list[float], here: list[float]) -> tuple[float, float, str]:
    """Seconds here over there, the band that noise explains, and what that means."""
    ratio = statistics.median(here) / statistics.median(base)
    noise = max(max(runs) / min(runs) - 1 for runs in (base, here))
    band = max(noise, LEAST_BAND)
    if ratio > 1 + band:
        return ratio, band, "SLOWER"
    return ratio, band, "faster" if ratio < 1 / (1 + band) else ""


def compare(revision: str, groups: tuple[str, ...]) -> int:
    """Print ours here over ours at a commit; 1 if anything is slower than noise explains."""
    commit = ["git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"]
    if subprocess.run(commit, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit(f"--base {revision}: no such commit")
    slower = 0
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "prune"], check=True)  # of one that was killed
        subprocess.run([*git, "add", "--quiet", "--detach", folder, revision], check=True)
        try:
            print("| case | base, ms | here, ms | ratio | noise | |\n|---|---|---|---|---|---|")
            for group, name in cases(groups):
                seconds: dict[Path, list[float]] = {Path(folder, "src"): [], ROOT / "src": []}
                for turn in range(ROUNDS):
                    for source in list(seconds)[:: 1 if turn % 2 else -1]:
                        row = measured(group, name, source, alone=True)
                        seconds[source].append(row["candidates"]["unmuddle"]["seconds"])
                base, here = seconds.values()
                ratio, band, word = verdict(base, here)
                middles = [f"{1000 * statistics.median(runs):,.2f}" for runs in (base, here)]
                cells = [f"{group}: {name}", *middles, f"{ratio:.2f}", f"±{band:.0%}", word]
                print(f"| {' | '.join(cells)} |", flush=True)
                slower += word == "SLOWER"
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)
    return int(slower > 0)


def main() -> int:
    """Measure, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=GROUPS, help="one group")
    parser.add_argument("--base", metavar="REV", help="commit to compare with")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the tensors")
    parser.add_argument("--case", nargs=2, metavar=("GROUP", "NAME"), help="print one as JSON")
    a = parser.parse_args()
    if a.case:
        group, name = a.case
        row = import_module(f"benchmarks.timings.{group}").CASES[name]()
        print(json.dumps(row | {"package": str(Path(unmuddle.__file__).resolve())}))
        return 0
    possible = GROUPS if a.device == "cpu" else ON_GPU
    groups = (a.only,) if a.only else possible
    if not set(groups) <= set(possible):
        parser.error(f"--device {a.device}: measures {', '.join(possible)}")
    check_agreement()
    if a.base:
        return compare(a.base, groups)
    measure_all(groups, a.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
