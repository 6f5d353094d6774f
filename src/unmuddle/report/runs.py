"""Read a run folder."""

import csv
import json
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
        metrics: one entry an epoch.
        summary: how the run ended.
    """

    path: Path
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name


_SUMMARY = {"status", "data", "noise", "backbone", "parts", "classes", "best_epoch", "seconds"}
_METRICS = {"epoch", "train_loss", "train_accuracy", "val_accuracy", "labels_right"}


def read_run(path: Path) -> RunFiles:
    """Read `metrics.jsonl` and `summary.json`.

    Raises:
        ValueError: the folder does not hold a run that has ended.
    """
    try:
        summary = json.loads((path / "summary.json").read_text())
        lines = (path / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not a run that has ended: no {error.filename}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable run: {error}") from error
    for name, entry, needed in [("summary.json", summary, _SUMMARY)] + [
        ("metrics.jsonl", entry, _METRICS) for entry in metrics
    ]:
        if not isinstance(entry, dict) or not needed <= entry.keys():
            raise ValueError(f"{path}: not a readable run: {name} lacks some of {sorted(needed)}")
    return RunFiles(path, metrics, summary)


def read_config(path: Path) -> dict[str, Any]:
    """The options that a run was started with.

    Raises:
        ValueError: its `config.yaml` cannot be read.
    """
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable run: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a readable run: config.yaml holds no options")
    return config


def read_samples(path: Path) -> Samples:
    """Read `samples.csv`, `ledger.csv`, `uerm.safetensors`, and `snapshot.safetensors` if there.

    Raises:
        ValueError: one of them cannot be read.
    """
    try:
        rows = _read_rows(path / "samples.csv")
        given = np.array([int(row["label"]) for row in rows])
        known = all(row["true_label"] for row in rows)
        true = np.array([int(row["true_label"]) for row in rows]) if known else None
        with safe_open(path / "uerm.safetensors", framework="numpy") as tensors:
            uncertainty = tensors.get_tensor("uncertainty").copy()
        if len(uncertainty) != len(given):
            raise ValueError(f"{len(given)} samples, and what UERM knows of {len(uncertainty)}")
        now, changes = _replay(path / "ledger.csv", given)
        for sample, change in changes.items():
            uncertainty[sample] = change.uncertainty
        snapshot = path / "snapshot.safetensors"
        drawn = load_file(snapshot) if snapshot.exists() else {}
    except (OSError, ValueError, KeyError, IndexError, csv.Error, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable run: {error}") from error
    return Samples([row["source"] for row in rows], given, now, true, uncertainty, changes, drawn)


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path.name}: row {number} is not of as many columns as the first")
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
