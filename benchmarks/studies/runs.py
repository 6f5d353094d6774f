"""Run `unmuddle train` for the cells of a study, and keep a row of results for each."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import nll_loss
from torch.utils.data import DataLoader

from benchmarks.pages import ROOT
from benchmarks.studies.evidence import Row
from unmuddle.recipe.atomic import write_whole
from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.evaluate import predict
from unmuddle.recipe.metrics import calibration_error, confusion_matrix, mean_class_accuracy
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.run_folder import Epoch, RunFolder
from unmuddle.recipe.trained import load_split, load_trained
from unmuddle.uerm import LedgerDataset

PATHS = ("data", "noise", "labels", "weights")  # options whose values hold paths
# FER2013's names of the classes, and FERPlus'.
NAMES = {"happy": "happiness", "sad": "sadness", "angry": "anger"}


def train_run(options: list[str], path: Path, *more: str) -> None:
    """Run `unmuddle train`, or go on where it was stopped; `more` options go with either."""
    started = (path / "config.yaml").exists()
    if started:
        check_options(options, path)
    given = [f"--resume={path}"] if started else [*options, f"--out={path}"]
    subprocess.run(
        [sys.executable, "-m", "unmuddle", "train", "--quiet", *given, *more],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def check_options(options: list[str], run: Path) -> None:
    """Raise a ValueError where a run was begun with other options than those given now."""
    used = yaml.safe_load((run / "config.yaml").read_text())
    given = dict(option.removeprefix("--").split("=", 1) for option in options)
    other = {
        name: used[name]
        for name, value in given.items()
        if name not in PATHS and not _same(used[name], value)
    }
    if other:
        raise ValueError(f"{run}: was begun with {other}; remove it")


def _same(used: Any, given: str) -> bool:
    return float(given) == used if isinstance(used, float) else given == str(used)


def run_missing(
    wanted: Iterable[Any], run: Callable[[Any], Row], results: Path, jobs: int, *settings: Path
) -> list[str]:
    """Run every cell that has no row yet; return descriptions of those that failed."""
    done, commit = {row["name"] for row in read_results(results)}, frozen_commit(*settings)
    missing = [cell for cell in dict.fromkeys(wanted) if cell.name() not in done]

    def named(cell: Any) -> Row:
        return {"name": cell.name()} | run(cell) | {"commit": commit}

    return run_all(missing, named, results, jobs)


def run_all(cells: Iterable[Any], run: Callable[[Any], Row], results: Path, jobs: int) -> list[str]:
    """Run cells in threads and add their rows; return descriptions of those that failed."""

    def failure(done: Future[Row], cell: Any) -> str | None:
        try:
            add_result(done.result(), results)
        except (subprocess.CalledProcessError, OSError, KeyError, ValueError) as error:
            return f"{cell.name()}: {error!r}"
        return None

    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(run, cell): cell for cell in cells}
        return [text for done in as_completed(futures) if (text := failure(done, futures[done]))]
    finally:
        pool.shutdown(cancel_futures=True)


def read_results(path: Path) -> list[Row]:
    """Read the rows of the cells that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def add_result(row: Row, path: Path) -> None:
    """Replace the file atomically by one with another row, sorted by name."""
    others = [other for other in read_results(path) if other["name"] != row["name"]]
    rows = sorted([*others, row], key=lambda row: row["name"])
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    write_whole(path, lambda partial: partial.write_text(text))
    print({name: value for name, value in row.items() if name != "right"}, flush=True)


def frozen_commit(*settings: Path) -> str:
    """Return the commit; exit if settings or package have uncommitted changes."""
    git = ["git", "-C", str(ROOT)]
    paths = [str(path) for path in (*settings, ROOT / "src")]
    status = [*git, "status", "--porcelain", "--", *paths]
    changed = subprocess.run(status, check=True, capture_output=True, text=True).stdout
    if changed:
        sys.exit(f"commit first, settings are chosen before the test is read:\n{changed}")
    head = [*git, "rev-parse", "--short", "HEAD"]
    return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()


def precision() -> str:
    """bf16 on CPUs that are fast at it; on a GPU the network is too small to gain by it."""
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if native and not torch.accelerator.is_available() else "no"


def human_labels(ferplus: Path, out: Path) -> Path:
    """FER2013's own labels of the faces, as `--noise file:` reads them."""
    path = out / "fer2013_labels.csv"
    with (ferplus / "fer2013_original_labels.csv").open(newline="") as file:
        rows = [(r["Image name"], r["fer2013_label"]) for r in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "label"))
        writer.writerows((name, NAMES.get(label, label)) for name, label in rows)
    return path


def figures(run: Path, split: Literal["val", "test"]) -> Row:
    """Of a finished run: scores of its best epoch, accuracy of its last one, and its outcome."""
    summary = json.loads((run / "summary.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["val_accuracy"]
    last = summary["test_last_epoch"]["accuracy"] if split == "test" else last
    return scores(run, split) | {"last": last} | outcome(run)


def scores(run: Path, split: Literal["val", "test"], epoch: Epoch = "best") -> Row:
    """Of a network; `right` has a 1 for every sample of the split classified right, else 0."""
    trained = load_trained(run, epoch)
    data = load_split(trained, split=split)
    probabilities, labels = predicted(trained.model, data)
    log = probabilities.clamp(min=1e-12).log()
    right = probabilities.argmax(1) == labels
    confusion = confusion_matrix(labels, probabilities.argmax(1), log.shape[1])
    return {
        "split": split,
        "accuracy": float(right.double().mean()),
        "mean_class_accuracy": mean_class_accuracy(confusion),
        "calibration": calibration_error(probabilities, labels),
        "log_loss": float(nll_loss(log, labels)),
        "vote_log_loss": None if data.votes is None else -float((data.votes * log).sum(1).mean()),
        "right": "".join("01"[hit] for hit in right.tolist()),
    }


def outcome(run: Path) -> Row:
    """What became of the labels of a finished run, and its time and machine."""
    summary = json.loads((run / "summary.json").read_text())
    relabeling, precision = summary["relabeling"], RunFolder(run).config().precision
    return {
        "before": relabeling["right_before"],
        "after": relabeling["right_after"],
        "precision": relabeling["precision"],
        "recall": relabeling["recall"],
        "seconds": round(summary["seconds"]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "dtype": "fp32" if precision == "no" else precision,
    }


def predicted(model: Classifier, data: LabeledImages, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Probabilities and labels, in order; on a GPU where there is one."""
    return predict(*Accelerator().prepare(model, DataLoader(LedgerDataset(data), batch_size=batch)))
