"""Read run folders."""

import csv
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file


class Change(NamedTuple):
    """How a sample came to its label, and why."""

    epoch: int
    new: int
    uncertainty: float
    margin: float
    threshold: float
    rule: str


@dataclass(frozen=True)
class Samples:
    """The n training samples.

    Attributes:
        sources: file that each image comes from; nothing where it has none.
        given: `(n,)` labels as given.
        now: `(n,)` labels when the run ended.
        true: `(n,)` labels known to be something better, if any.
        uncertainty: `(n,)` of the label when the run ended, or when it was changed; zeros if the
            run did not estimate it.
        changes: of the samples that have another label now.
        snapshot: tensors of `snapshot.safetensors`, if the run came to write it.
    """

    sources: list[str]
    given: np.ndarray
    now: np.ndarray
    true: np.ndarray | None
    uncertainty: np.ndarray
    changes: dict[int, Change]
    snapshot: dict[str, np.ndarray]


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind.

    Attributes:
        path: the folder.
        name: the folder's, with as many of those above it as tell it from other runs.
        metrics: one entry an epoch.
        summary: how the run ended.
    """

    path: Path
    name: str
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]


_SUMMARY = {"status", "data", "noise", "backbone", "parts", "classes", "best_epoch", "seconds"}
_METRICS = {"epoch", "train_loss", "train_accuracy", "val_accuracy", "labels_right"}


def read_run(path: Path) -> RunFiles:
    """`read_runs` of one."""
    return read_runs([path])[0]


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Read `metrics.jsonl` and `summary.json` of each.

    Raises:
        ValueError: a folder does not hold a run that has ended, or is given twice.
    """
    folders = [path.resolve() for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{path}: given twice")
    return [
        RunFiles(path, _name(folder, folders), *_read_figures(path))
        for path, folder in zip(paths, folders, strict=True)
    ]


def _name(folder: Path, folders: list[Path]) -> str:
    """The shortest end of a path that no other one has."""
    ends = (folder.parts[-n:] for n in range(1, len(folder.parts)))
    return "/".join(
        next(
            (end for end in ends if sum(f.parts[-len(end) :] == end for f in folders) == 1),
            folder.parts,
        )
    )


def _read_figures(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not (path / "config.yaml").exists():
        raise ValueError(f"{path}: {'holds no run' if path.exists() else 'is not there'}")
    if not (path / "summary.json").exists():
        raise ValueError(f"{path}: was stopped; unmuddle train --resume {path} goes on")
    with _reading(path / "summary.json"):
        summary = json.loads((path / "summary.json").read_text())
        _check(summary, _SUMMARY)
        if not isinstance(summary["seconds"], int | float):
            raise ValueError(f"seconds: expected a number, got {summary['seconds']!r}")
    with _reading(path / "metrics.jsonl"):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        for entry in metrics:
            _check(entry, _METRICS)
        best, epochs = summary["best_epoch"], [entry["epoch"] for entry in metrics]
        if epochs and best and best not in epochs:
            raise ValueError(f"lacks the selected epoch, {best}")
    return metrics, summary


def _check(entry: Any, needed: set[str]) -> None:
    if not isinstance(entry, dict) or not needed <= entry.keys():
        raise ValueError(f"lacks some of {', '.join(sorted(needed))}")


_DAMAGE = (OSError, ValueError, LookupError, csv.Error, yaml.YAMLError, SafetensorError)


@contextmanager
def _reading(file: Path) -> Generator[None]:
    """Say which file it was that could not be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{file}: is not there") from error
    except _DAMAGE as error:
        raise ValueError(f"{file}: is not readable: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The options that a run was started with.

    Raises:
        ValueError: its `config.yaml` cannot be read.
    """
    with _reading(path / "config.yaml"):
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("holds no options")
    return config


def read_samples(path: Path) -> Samples:
    """Read `samples.csv`, `ledger.csv`, `uerm.safetensors`, and `snapshot.safetensors` if there.

    Raises:
        ValueError: one of them cannot be read.
    """
    with _reading(path / "samples.csv"):
        rows = _read_rows(path / "samples.csv")
        given = np.array([int(row["label"]) for row in rows])
        known = all(row["true_label"] for row in rows)
        true = np.array([int(row["true_label"]) for row in rows]) if known else None
    with _reading(path / "ledger.csv"):
        now, changes = _replay(path / "ledger.csv", given)
    with _reading(path / "uerm.safetensors"):
        with safe_open(path / "uerm.safetensors", framework="numpy") as tensors:
            uncertainty = tensors.get_tensor("uncertainty").copy()
        if len(uncertainty) != len(given):
            raise ValueError(f"is of {len(uncertainty)} samples, not {len(given)}")
        for sample, change in changes.items():
            if not np.isnan(change.uncertainty):
                uncertainty[sample] = change.uncertainty
    snapshot = path / "snapshot.safetensors"
    with _reading(snapshot):
        drawn = load_file(snapshot) if snapshot.exists() else {}
    return Samples([row["source"] for row in rows], given, now, true, uncertainty, changes, drawn)


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} is not of as many columns as the first")
    return rows


def _replay(path: Path, given: np.ndarray) -> tuple[np.ndarray, dict[int, Change]]:
    """Labels after all events, and the last change of each sample that is not as given."""
    now, last = given.copy(), dict[int, Change]()
    for row in _read_rows(path):
        sample, new = int(row["sample"]), int(row["new"])
        scores = (float(row[name]) for name in ("uncertainty", "margin", "threshold"))
        last[sample] = Change(int(row["epoch"]), new, *scores, rule=row["rule"])
        now[sample] = new
    return now, {i: change for i, change in last.items() if now[i] != given[i]}
