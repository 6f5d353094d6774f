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


def read_run(path: Path) -> RunFiles:
    """Read `metrics.jsonl` and `summary.json`.

    Raises:
        ValueError: the folder does not hold a run that has ended.
    """
    try:
        summary = json.loads((path / "summary.json").read_text())
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return RunFiles(path, [json.loads(line) for line in lines], summary)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not a run that has ended: no {error.filename}") from error
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable run: {error}") from error
