"""The files of a run. Each is written whole or not at all."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor

from unmuddle.recipes.config import TrainConfig
from unmuddle.recipes.data import LabeledImages
from unmuddle.recipes.data.duplicates import Copy
from unmuddle.recipes.errors import UsageError
from unmuddle.uerm import UERM


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV whole."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    write_whole(path, write)


def make_folder(option: str, path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error}") from error
    return path


def read_config(run: Path) -> TrainConfig:
    """The options that a run was started with.

    Raises:
        UsageError: the folder does not hold a run.
    """
    path = run / "config.yaml"
    try:
        config = TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"--run {run}: no readable {path.name}: {error}") from error
    config.check()
    return config


class RunFolder:
    """`config.yaml`, `samples.csv`, `metrics.jsonl`, `ledger.csv`, `model.safetensors`, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise a UsageError if the path holds something already."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"--run {path}: exists and is not empty")

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> "RunFolder":
        """Make a new folder holding the config.

        Raises:
            UsageError: it cannot be made.
        """
        run = cls(make_folder("--run", path))
        text = yaml.safe_dump(asdict(config) | {"run": str(path)}, sort_keys=False)
        write_whole(path / "config.yaml", lambda file: file.write_text(text))
        (path / "metrics.jsonl").touch()
        return run

    def save_samples(self, data: LabeledImages, classes: tuple[str, ...]) -> None:
        """Write which image each training sample id stands for, and its label as given."""
        sources = [data.source(i) for i in range(len(data))]
        names = [classes[label] for label in data.labels.tolist()]
        rows = zip(range(len(data)), sources, data.labels.tolist(), names, strict=True)
        write_table(self.path / "samples.csv", ("sample", "source", "label", "label_name"), rows)

    def save_duplicates(self, copies: list[Copy]) -> None:
        """Write which images the data set holds more than once."""
        write_table(self.path / "duplicates.csv", Copy._fields, copies)

    def add_metrics(self, **values: float | None) -> None:
        """Append one line."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def save_relabeling(self, uerm: UERM) -> None:
        """Write every label change so far, and what is known of every sample."""
        write_whole(self.path / "ledger.csv", uerm.ledger.to_csv)
        state = {name: value.cpu() for name, value in uerm.state_dict().items()}
        write_whole(
            self.path / "uerm.safetensors", lambda file: safetensors.torch.save_file(state, file)
        )

    def save_model(self, state: dict[str, Tensor]) -> None:
        """Write the weights."""
        write_whole(
            self.path / "model.safetensors", lambda file: safetensors.torch.save_file(state, file)
        )

    def save_summary(self, summary: dict[str, Any]) -> None:
        """Write how the run ended."""
        text = json.dumps(summary, indent=2) + "\n"
        write_whole(self.path / "summary.json", lambda file: file.write_text(text))
