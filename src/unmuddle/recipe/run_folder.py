"""Files of a run folder, and how they are written and read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import yaml
from torch import Tensor

from unmuddle.recipe.atomic import PARTIAL, write_tensors, write_text, write_whole
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages, Splits
from unmuddle.recipe.data.duplicates import Copy
from unmuddle.recipe.decisions import Decisions, Row, read_decisions, rows_of, write_rows
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.tables import read_table, write_table
from unmuddle.uerm import UERM, LabelLedger

Epoch = Literal["best", "last"]
WEIGHTS: dict[Epoch, str] = {"best": "model.safetensors", "last": "last.safetensors"}
ENDED = ("finished", "diverged")  # the other statuses are of runs that can be resumed
_SUMMARY = (
    "status", "data", "noise", "backbone", "parts", "classes", "image_size", "best_epoch", "seconds"
)  # fmt: skip


class RunFolder:
    """Run folder: `config.yaml`, `samples.csv`, `metrics.jsonl`, `model.safetensors`, ...

    Methods that read a file raise a UsageError if it is missing or damaged. The message names the
    file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.duplicates = path / "duplicates.csv"
        self.left_out = path / "left_out.csv"
        self.labels = path / "labels.csv"
        self._was_there = False

    # Life cycle of the folder

    def check_free(self) -> None:
        """Raise a UsageError if the path exists and is not an empty folder."""
        path = self.path
        self._was_there = path.is_dir()
        if path.is_dir():
            # A run that was killed while writing its first file leaves only a partial file.
            used = any(not entry.name.startswith(PARTIAL) for entry in path.iterdir())
        else:
            used = path.exists()
        if used:
            hint = "; --resume continues a run" if (path / "config.yaml").exists() else ""
            raise UsageError(f"--out {path}: exists and is not an empty folder{hint}")

    def claim(self) -> None:
        """Create the folder of a new run, after all other checks have passed.

        Raises:
            UsageError: the folder cannot be created, or another run has created it meanwhile.
        """
        with refusing(f"--out {self.path}: cannot be created"):
            self.path.mkdir(parents=True, exist_ok=self._was_there)

    def rewind(self, epoch: int) -> None:
        """Remove everything that was written after the given epoch."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(lines[:epoch]))
        for name in ("summary.json", "report.html", WEIGHTS["last"]):
            (self.path / name).unlink(missing_ok=True)
        for partial in self.path.glob(f"{PARTIAL}*"):
            partial.unlink()

    def status(self) -> str | None:
        """Return the final status of the run, or `None` if it has not ended."""
        return self.summary()["status"] if (self.path / "summary.json").exists() else None

    def check_ended(self, option: str = "--run") -> None:
        """Raise a UsageError unless the folder holds a run that has ended."""
        self.check_run(option)
        if not (self.path / "summary.json").exists():
            hint = f"was stopped; unmuddle train --resume {self.path} goes on"
            raise UsageError(f"{option} {self.path}: {hint}".lstrip())

    def check_run(self, option: str = "--run") -> None:
        """Raise a UsageError unless the folder holds a run."""
        if not (self.path / "config.yaml").is_file():
            what = "holds no run: no config.yaml" if self.path.exists() else "is not there"
            raise UsageError(f"{option} {self.path}: {what}".lstrip())

    # Options and summary

    def save_config(self, config: TrainConfig) -> None:
        """Write the options that the run was started with."""
        text = yaml.safe_dump(asdict(config) | {"out": str(self.path)}, sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def config(self, option: str = "--run") -> TrainConfig:
        """Read the options."""
        self.check_run(option)
        path = self.path / "config.yaml"
        with refusing(f"{path}: is not readable"):
            config = TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
            config.check()
        return config

    def save_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """Read the summary."""
        path = self.path / "summary.json"
        with refusing(f"{path}: is not readable"):
            summary = json.loads(path.read_text(encoding="utf-8"))
            if missing := [name for name in _SUMMARY if name not in summary]:
                raise ValueError(f"lacks {', '.join(missing)}")
        return summary

    # Metrics and weights

    def add_metrics(self, entry: Mapping[str, float | None]) -> None:
        """Append the metrics of an epoch."""
        path = self.path / "metrics.jsonl"
        write_text(path, f"{path.read_text()}{json.dumps(entry)}\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics of each epoch."""
        path = self.path / "metrics.jsonl"
        with refusing(f"{path}: is not readable"):
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def save_weights(self, weights: dict[str, Tensor], epoch: Epoch = "best") -> None:
        """Write the weights of the best or the last epoch."""
        write_tensors(self.path / WEIGHTS[epoch], weights)

    def weights(self, epoch: Epoch = "best") -> dict[str, Tensor]:
        """Read the weights of the best or the last epoch."""
        return _read_tensors(self.path / WEIGHTS[epoch])

    # Training samples and their labels

    def save_samples(self, data: LabeledImages, classes: tuple[str, ...]) -> None:
        """Write the image file, its content and the given label of each training sample."""
        sources = [data.source(i) for i in range(len(data))]
        contents = [data.content(i) for i in range(len(data))]
        labels = data.labels.tolist()
        names = [classes[label] for label in labels]
        true = [""] * len(data) if data.true_labels is None else data.true_labels.tolist()
        columns = ("sample", "source", "label", "label_name", "true_label", "content")
        rows = zip(range(len(data)), sources, labels, names, true, contents, strict=True)
        write_table(self.path / "samples.csv", columns, rows)

    def samples(self) -> list[dict[str | None, Any]]:
        """Read the rows of `samples.csv`."""
        path = self.path / "samples.csv"
        with refusing(f"{path}: is not readable"):
            rows = [*read_table(path, ("source", "label", "true_label"))]
            if odd := next((line for line, row in rows if None in (*row, *row.values())), None):
                raise ValueError(f"line {odd} does not have as many columns as the first")
        return [row for _, row in rows]

    def check_images(self, option: str, data: LabeledImages) -> None:
        """Raise a UsageError unless the image files have the same names as in the run.

        Their folders may differ.
        """
        names = [Path(row["source"]).name for row in self.samples()]
        here = [Path(data.source(i)).name for i in range(len(data))]
        if names != here:
            gone, new = Counter(names) - Counter(here), Counter(here) - Counter(names)
            changes = f"{gone.total()} of its {len(names)} are gone, {new.total()} are new"
            raise UsageError(
                f"{option} {self.path}: was trained on other images: "
                f"{changes if gone or new else 'their order differs'}; train again, or give "
                "--data the images as they were"
            )

    def changed(self, data: LabeledImages) -> list[int]:
        """Return the samples whose images have changed since the run began."""
        contents = [data.content(i) for i in range(len(data))]
        rows = enumerate(zip(self.samples(), contents, strict=True))
        return [i for i, (row, here) in rows if row.get("content", here) != here]

    def check_unchanged(self, data: LabeledImages) -> None:
        """Raise a UsageError if images have changed since the run began."""
        if changed := self.changed(data):
            raise UsageError(
                f"--resume {self.path}: {len(changed)} images have changed since the run began, "
                f"such as {data.source(changed[0])}; restore them, or train again"
            )

    def check_unseen(self, option: str, data: LabeledImages) -> None:
        """Raise a UsageError if the run was trained on some of the image files."""
        trained = {_tail(row["source"]) for row in self.samples() if row["source"]}
        seen = sum(_tail(data.source(i)) in trained for i in range(len(data)))
        if seen:
            raise UsageError(
                f"{option} {self.path}: was trained on {seen} of these {len(data)} images; files "
                "were added or removed since, and the splits drawn again"
            )

    def save_decisions(self, labels: Path) -> None:
        """Write a copy of the decisions that the run uses."""
        write_whole(self.labels, lambda file: file.write_bytes(labels.read_bytes()))

    def decisions(self, splits: Splits) -> Decisions | None:
        """Read the decisions that the run uses, if any."""
        if not self.labels.exists():
            return None
        return read_decisions(self.labels, splits.parts(), splits.classes)

    def save_duplicates(self, copies: list[Copy]) -> None:
        """Write the list of duplicate images in the data set."""
        write_table(self.duplicates, Copy._fields, copies)

    def save_left_out(self, left_out: Mapping[str, Sequence[str]]) -> None:
        """Write the list of items of the data set that are in no split, if there are any."""
        if not left_out:
            self.left_out.unlink(missing_ok=True)
            return
        rows = ((kind, place) for kind, places in left_out.items() for place in places)
        write_table(self.left_out, ("kind", "place"), rows)

    def save_relabeling(self, uerm: UERM, splits: Splits, held_out: Sequence[Row]) -> None:
        """Write every label change so far, the resulting labels, and UERM's state.

        The labels include decisions about validation and test samples.
        """
        write_whole(self.path / "ledger.csv", uerm.ledger.to_csv)
        rows = [*rows_of(uerm.ledger, splits.train, splits.classes), *held_out]
        write_rows(self.path / "relabeled.csv", rows)
        write_tensors(self.path / "uerm.safetensors", uerm.state_dict())

    def uerm(self, labels: Tensor, num_classes: int) -> tuple[LabelLedger, dict[str, Tensor]]:
        """Read the ledger of the training labels, and the other tensors of UERM's state."""
        path = self.path / "uerm.safetensors"
        state = _read_tensors(path)
        of_ledger = {k.removeprefix("ledger."): state.pop(k) for k in {*state} if "ledger." in k}
        ledger = LabelLedger(labels, num_classes)
        with refusing(f"{path}: is not readable"):
            ledger.load_state_dict(of_ledger)
        return ledger, state

    def save_snapshot(self, tensors: dict[str, Tensor]) -> None:
        """Write the snapshot of the training samples for the report."""
        write_tensors(self.path / "snapshot.safetensors", tensors)

    def snapshot(self) -> dict[str, Tensor]:
        """Read the snapshot for the report. It is empty if the run did not write one."""
        path = self.path / "snapshot.safetensors"
        return _read_tensors(path) if path.exists() else {}


def _tail(source: str) -> tuple[str, ...]:
    """Return the end of a path, which is the same for a relative and an absolute path."""
    return Path(source).absolute().parts[-3:]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with refusing(f"{path}: is not readable"):
        return safetensors.torch.load_file(path)
