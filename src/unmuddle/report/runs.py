"""Read a run folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
