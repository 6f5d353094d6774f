"""Relabeling on FERPlus: policies against plain training, over noise and seeds.

Every cell is an `unmuddle train` run in a folder of its own; a cell whose folder holds a finished
run is not run again, so an interrupted study goes on where it was.
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The same for every policy.
TRAINING = "--backbone small --epochs 60 --batch_size 64 --lr 3e-3 --precision bf16 --warmup 0.47"
AS_PUBLISHED = "--relabel_estimator attention --relabel_evidence batches"
POLICIES = {
    "none": "--parts none",
    "bayes": "--parts uerm",
    "ema_margin": "--parts uerm --relabel_policy ema_margin",
    "scn": f"--parts uerm --relabel_policy scn {AS_PUBLISHED}",
    "scn_all": f"--parts uerm --relabel_policy scn_all {AS_PUBLISHED}",
}
NOISES = ("none", "symmetric:0.1", "symmetric:0.2", "symmetric:0.3", "human")
# FER2013's names of the classes, and FERPlus'.
NAMES = {"happy": "happiness", "sad": "sadness", "angry": "anger"}


def human_labels(data: Path, out: Path) -> Path:
    """FER2013's own labels of the faces, as `--noise file:` reads them."""
    path = out / "fer2013_labels.csv"
    with (data / "fer2013_original_labels.csv").open(newline="") as file:
        rows = [(r["Image name"], r["fer2013_label"]) for r in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "label"))
        writer.writerows((name, NAMES.get(label, label)) for name, label in rows)
    return path


def run_cell(data: Path, out: Path, policy: str, noise: str, seed: int) -> Path:
    """Train, unless it has been done."""
    path = out / f"{policy}-{noise.replace(':', '-')}-{seed}"
    if (path / "summary.json").exists():
        return path
    shutil.rmtree(path, ignore_errors=True)
    spec = f"file:{out / 'fer2013_labels.csv'}" if noise == "human" else noise
    cell = ["--data", f"ferplus:{data}", "--noise", spec, "--seed", str(seed), "--run", str(path)]
    options = f"{TRAINING} {POLICIES[policy]}".split()
    subprocess.run(
        [sys.executable, "-m", "unmuddle", "train", *cell, *options],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    print(f"{path.name} done", flush=True)
    return path


def figures(path: Path) -> dict[str, float | None]:
    """What the table shows of a run."""
    summary = json.loads((path / "summary.json").read_text())
    relabeling = summary["relabeling"]
    return {
        "test": summary["test"]["accuracy"],
        "last": summary["test_last_epoch"]["accuracy"],
        "class": summary["test"]["mean_class_accuracy"],
        "before": relabeling["right_before"],
        "after": relabeling["right_after"],
        "precision": relabeling["precision"],
        "recall": relabeling["recall"],
    }


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation in percent; a dash where there is none."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.1f}" + (
        f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    )


def print_table(out: Path, noises: list[str], policies: list[str]) -> None:
    """Mean ± standard deviation over the seeds that are done."""
    columns = ("test", "last", "class", "before", "after", "precision", "recall")
    print(
        "\n| noise | policy | seeds | test accuracy | of the last epoch | mean class accuracy "
        "| labels right before | after | precision | recall |\n" + "|---" * 10 + "|"
    )
    for noise, policy in itertools.product(noises, policies):
        done = sorted(out.glob(f"{policy}-{noise.replace(':', '-')}-*/summary.json"))
        found = [figures(path.parent) for path in done]
        if found:
            cells = [spread([f[column] for f in found]) for column in columns]
            print(f"| {noise} | {policy} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="FERPlus in its owners' layout")
    parser.add_argument("--out", type=Path, default=Path("runs/relabel"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=NOISES)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if not a.table:
        if "human" in a.noises:
            human_labels(a.data, a.out)
        cells = itertools.product(a.seeds, a.noises, a.policies)
        with ThreadPoolExecutor(a.jobs) as pool:
            list(pool.map(lambda cell: run_cell(a.data, a.out, cell[2], cell[1], cell[0]), cells))
    print_table(a.out, a.noises, a.policies)


if __name__ == "__main__":
    main()
