"""The files of a run. Each is written whole or not at all."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor

from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.data.duplicates import Copy
from unmuddle.recipe.decisions import Row, rows_of
from unmuddle.recipe.errors import UsageError
from unmuddle.uerm import UERM

_PARTIAL = ".partial-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step.

    Raises:
        OSError: it cannot be written, as on a full disk; what was there before is still there.
    """
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV whole."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
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
        raise UsageError(f"{option} {path}: cannot be made: {error.strerror}") from error
    return path


def read_config(run: Path, option: str = "--run") -> TrainConfig:
    """The options that a run was started with.

    Raises:
        UsageError: the folder does not hold a run.
    """
    path = run / "config.yaml"
    if not path.is_file():
        what = "is not there" if not run.exists() else "holds no run: no config.yaml"
        raise UsageError(f"{option} {run}: {what}")
    try:
        config = TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
        config.check()
    except UsageError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(f"{option} {run}: config.yaml is not readable: {error}") from error
    return config


def check_images(option: str, run: Path, data: LabeledImages) -> None:
    """Raise a UsageError unless the images have the names of a run's, wherever they are now."""
    try:
        with (run / "samples.csv").open(newline="", encoding="utf-8") as file:
            names = [Path(row["source"]).name for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(f"{option} {run}: no readable samples.csv: {error}") from error
    here = [Path(data.source(i)).name for i in range(len(data))]
    differing = sum(a != b for a, b in zip_longest(names, here))
    if differing:
        raise UsageError(
            f"{option} {run}: was trained on other images: {len(names)}, here are {len(here)}; "
            f"{differing} names differ"
        )


def check_ended(run: Path) -> None:
    """Raise a UsageError if a run was stopped before it could say how it ended."""
    if not (run / "summary.json").exists():
        raise UsageError(f"--run {run}: was stopped; unmuddle train --resume {run} goes on")


class RunFolder:
    """`config.yaml`, `samples.csv`, `metrics.jsonl`, `ledger.csv`, `model.safetensors`, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self.metrics: list[str] = []
        self._was_there = False

    def check_free(self) -> None:
        """Raise a UsageError if the path holds something already."""
        path = self.path
        self._was_there = path.is_dir()
        if path.is_dir():
            # A run that was killed while it wrote its first file left nothing else.
            used = any(not entry.name.startswith(_PARTIAL) for entry in path.iterdir())
        else:
            used = path.exists()
        if used:
            hint = "; --resume goes on with a run" if (path / "config.yaml").exists() else ""
            raise UsageError(f"--out {path}: exists and is not an empty folder{hint}")

    def claim(self) -> None:
        """Make the folder of a new run, once nothing can be wrong any more.

        Raises:
            UsageError: it cannot be made, or another run has taken it in the meantime.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=self._was_there)
        except FileExistsError as error:
            raise UsageError(f"--out {self.path}: another run has just taken it") from error
        except OSError as error:
            raise UsageError(f"--out {self.path}: cannot be made: {error.strerror}") from error

    def create(self, config: TrainConfig) -> None:
        """Make the folder, holding the config.

        Raises:
            UsageError: it cannot be made.
        """
        make_folder("--out", self.path)
        text = yaml.safe_dump(asdict(config) | {"out": str(self.path)}, sort_keys=False)
        write_whole(self.path / "config.yaml", lambda file: file.write_text(text))

    def status(self) -> str | None:
        """Return how the run ended, if it has."""
        path = self.path / "summary.json"
        try:
            return json.loads(path.read_text())["status"] if path.exists() else None
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{path}: is not readable: {error!r}") from error

    def rewind(self, epoch: int) -> None:
        """Forget what came after an epoch."""
        path = self.path / "metrics.jsonl"
        self.metrics = path.read_text().splitlines()[:epoch] if path.exists() else []
        self._write_metrics()
        for name in ("summary.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        for partial in self.path.glob(f"{_PARTIAL}*"):
            partial.unlink()

    def save_samples(self, data: LabeledImages, classes: tuple[str, ...]) -> None:
        """Write which image each training sample id stands for, and its label as given."""
        sources = [data.source(i) for i in range(len(data))]
        labels = data.labels.tolist()
        names = [classes[label] for label in labels]
        true = [""] * len(data) if data.true_labels is None else data.true_labels.tolist()
        columns = ("sample", "source", "label", "label_name", "true_label")
        rows = zip(range(len(data)), sources, labels, names, true, strict=True)
        write_table(self.path / "samples.csv", columns, rows)

    def save_duplicates(self, copies: list[Copy]) -> None:
        """Write which images the data set holds more than once."""
        write_table(self.path / "duplicates.csv", Copy._fields, copies)

    def save_left_out(self, left_out: Mapping[str, Sequence[str]]) -> None:
        """Write what of the data set is in no split."""
        rows = ((kind, place) for kind, places in left_out.items() for place in places)
        write_table(self.path / "left_out.csv", ("kind", "place"), rows)

    def add_metrics(self, entry: dict[str, float | None]) -> None:
        """Append one line."""
        self.metrics.append(json.dumps(entry))
        self._write_metrics()

    def _write_metrics(self) -> None:
        text = "".join(f"{line}\n" for line in self.metrics)
        write_whole(self.path / "metrics.jsonl", lambda file: file.write_text(text))

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        """Write the weights of the best epoch."""
        write_tensors(self.path / "model.safetensors", weights)

    def save_relabeling(self, uerm: UERM, data: LabeledImages, classes: tuple[str, ...]) -> None:
        """Write every label change so far, what came of them, and what is known of every sample."""
        write_whole(self.path / "ledger.csv", uerm.ledger.to_csv)
        rows = rows_of(uerm.ledger, data, classes)
        write_table(self.path / "relabeled.csv", Row._fields, rows)
        write_tensors(self.path / "uerm.safetensors", uerm.state_dict())

    def save_snapshot(self, tensors: dict[str, Tensor]) -> None:
        """Write what a report shows of the training samples."""
        write_tensors(self.path / "snapshot.safetensors", tensors)

    def save_summary(self, summary: dict[str, Any]) -> None:
        """Write how the run ended."""
        text = json.dumps(summary, indent=2) + "\n"
        write_whole(self.path / "summary.json", lambda file: file.write_text(text))


def write_tensors(
    path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """Write a file of safetensors whole. If `save_file` is killed, a file of its own is left."""
    state = {name: value.cpu() for name, value in tensors.items()}
    write_whole(path, lambda file: file.write_bytes(safetensors.torch.save(state, header)))
