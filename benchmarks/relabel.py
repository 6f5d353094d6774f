"""Relabeling on FERPlus: policies against plain training, over noise and seeds.

Every cell is an `unmuddle train` run in a folder of its own, and a row of `relabel.csv` beside this
file once it has finished. A cell that has a row is not run again, and one that was stopped is
resumed, so an interrupted study goes on where it was. The table goes into docs/pages/evidence.md.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from pages import write_section

# The same for every policy; chosen on validation accuracy.
TRAINING = "--backbone small --epochs 60 --batch_size 64 --lr 3e-3 --warmup 0.47"
RESULTS = Path(__file__).with_name("relabel.csv")
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


def name_of(policy: str, noise: str, seed: int) -> str:
    """Of a cell."""
    return f"{policy}-{noise.replace(':', '-')}-{seed}"


def precision() -> str:
    """bf16 where it is fast."""
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if native or torch.accelerator.is_available() else "no"


def run_cell(data: Path, out: Path, policy: str, noise: str, seed: int) -> dict[str, object]:
    """Train, or go on where it was stopped; a row of results."""
    path = out / name_of(policy, noise, seed)
    if (path / "config.yaml").exists():
        options = ["--resume", str(path)]
    else:
        spec = f"file:{out / 'fer2013_labels.csv'}" if noise == "human" else noise
        cell = ["--data", f"ferplus:{data}", "--noise", spec, "--seed", str(seed)]
        given = f"{TRAINING} {POLICIES[policy]} --precision {precision()}"
        options = [*cell, *given.split(), "--out", str(path)]
    subprocess.run(
        [sys.executable, "-m", "unmuddle", "train", "--quiet", *options],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    summary = json.loads((path / "summary.json").read_text())
    relabeling = summary["relabeling"]
    return {
        "noise": noise,
        "policy": policy,
        "seed": seed,
        "test": summary["test"]["accuracy"],
        "last": summary["test_last_epoch"]["accuracy"],
        "class": summary["test"]["mean_class_accuracy"],
        "before": relabeling["right_before"],
        "after": relabeling["right_after"],
        "precision": relabeling["precision"],
        "recall": relabeling["recall"],
        "bf16": precision() == "bf16",
        "seconds": round(summary["seconds"]),
    }


def read_results() -> list[dict[str, str]]:
    """Rows of the cells that are done."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def add_result(row: dict[str, object]) -> None:
    """Append a row."""
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(f"{name_of(row['policy'], row['noise'], row['seed'])}: {row}", flush=True)


def spread(values: list[str]) -> str:
    """Mean and standard deviation in percent; a dash where there is none."""
    known = [100 * float(value) for value in values if value]
    if not known:
        return "-"
    return f"{statistics.mean(known):.1f}" + (
        f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    )


def table() -> str:
    """Mean ± standard deviation over the seeds that are done."""
    columns = ("test", "last", "class", "before", "after", "precision", "recall")
    lines = [
        "| noise | policy | seeds | test accuracy | of the last epoch | mean class accuracy "
        "| labels right before | after | precision | recall |",
        "|---" * 10 + "|",
    ]
    results = read_results()
    for noise, policy in itertools.product(NOISES, POLICIES):
        found = [r for r in results if (r["noise"], r["policy"]) == (noise, policy)]
        if found:
            cells = [spread([row[column] for row in found]) for column in columns]
            lines.append(f"| {noise} | {policy} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="FERPlus in its owners' layout")
    parser.add_argument("--out", type=Path, default=Path("runs/relabel"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=NOISES)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="write what is there, run nothing")
    a = parser.parse_args()
    if not (a.data or a.table):
        parser.error("--data is needed, or --table")
    if not a.table:
        a.out.mkdir(parents=True, exist_ok=True)
        human_labels(a.data, a.out)
        done = {(r["policy"], r["noise"], r["seed"]) for r in read_results()}
        cells = [
            (policy, noise, seed)
            for seed, noise, policy in itertools.product(a.seeds, a.noises, a.policies)
            if (policy, noise, str(seed)) not in done
        ]
        with ThreadPoolExecutor(a.jobs) as pool:
            runs = [pool.submit(run_cell, a.data, a.out, *cell) for cell in cells]
            for run in as_completed(runs):
                add_result(run.result())
    write_section("evidence.md", "relabel", table())
    print(table())


if __name__ == "__main__":
    main()
