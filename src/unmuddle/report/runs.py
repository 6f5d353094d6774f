"""Metrics of runs, and the labels of their training samples."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmuddle.recipe.errors import refusing
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.uerm import Event


@dataclass(frozen=True)
class Samples:
    """The n training samples of a run.

    Attributes:
        sources: file of each image; empty where it has none.
        given: `(n,)` labels as given.
        now: `(n,)` labels at the end of the run.
        true: `(n,)` true labels, or at least better ones than the given labels, if known.
        uncertainty: `(n,)` uncertainty of each label at its last change, or at the end of the run
            if it was not changed. It is 0 if the run did not estimate it.
        changes: last change of each sample whose label is not the given one.
        snapshot: tensors of `snapshot.safetensors`, if the run wrote it.
    """

    sources: list[str]
    given: np.ndarray
    now: np.ndarray
    true: np.ndarray | None
    uncertainty: np.ndarray
    changes: dict[int, Event]
    snapshot: dict[str, np.ndarray]


@dataclass(frozen=True)
class RunFiles:
    """A run that has ended.

    Attributes:
        folder: run folder.
        name: name of the folder, with as many parents as distinguish it from the other runs.
        metrics: one entry per epoch.
        summary: contents of `summary.json`.
    """

    folder: RunFolder
    name: str
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Read the metrics and summaries of runs.

    Raises:
        UsageError: a folder does not hold a run that has ended.
    """
    resolved = [path.resolve() for path in paths]
    shared = os.path.commonpath([path.parent for path in resolved])
    runs: list[RunFiles] = []
    for path, whole in zip(paths, resolved, strict=True):
        folder = RunFolder(path)
        folder.check_ended("")
        name = str(whole.relative_to(shared))
        runs.append(RunFiles(folder, name, folder.metrics(), folder.summary()))
    return runs


def read_samples(folder: RunFolder, num_classes: int) -> Samples:
    """Read the training samples of a run, their labels and the snapshot.

    Raises:
        UsageError: a file cannot be read, or does not fit the others.
    """
    rows = folder.samples()
    with refusing(f"{folder.path}: its files are inconsistent"):
        given = np.array([int(row["label"]) for row in rows])
        known = all(row["true_label"] for row in rows)
        true = np.array([int(row["true_label"]) for row in rows]) if known else None
        ledger, state = folder.uerm(torch.from_numpy(given), num_classes)
        now = ledger.current_labels.numpy()
        changes = {event.sample: event for event in ledger.events()}  # the last one of each sample
        changes = {i: event for i, event in changes.items() if now[i] != given[i]}
        uncertainty = state["uncertainty"].numpy().copy()
        for sample, change in changes.items():
            if not np.isnan(change.uncertainty):
                uncertainty[sample] = change.uncertainty
    snapshot = {name: tensor.numpy() for name, tensor in folder.snapshot().items()}
    sources = [row["source"] for row in rows]
    return Samples(sources, given, now, true, uncertainty, changes, snapshot)
