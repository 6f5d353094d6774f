"""A run folder as the recipe leaves it."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.numpy import save_file

from unmuddle.uerm import LabelLedger

CLASSES = ["a", "b$<i>"]
GIVEN = [0, 1] * 10
TRUE = [0, 1] * 8 + [1] * 4  # two labels are wrong
# sample, epoch, new label, uncertainty, margin
RELABELS = [(16, 1, 1, 0.9, 0.75), (0, 1, 1, 0.8, 0.625), (2, 2, 1, 0.7, 0.6)]


def write_csv(path: Path, columns: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns.split(), *rows])


def write_run(path: Path, *, finished: bool = True, truth: bool = True) -> Path:
    path.mkdir()
    entry = {"train_loss": 2.0, "train_accuracy": 0.5, "val_accuracy": 0.25, "labels_right": None}
    lines = [entry | {"epoch": e} | ({"labels_right": 0.75} if truth else {}) for e in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "status": "finished" if finished else "interrupted",
        "data": "digits", "noise": "none", "parts": "uerm", "backbone": "small",
        "classes": CLASSES, "image_size": 8, "best_epoch": 2, "seconds": 12.3,
    }  # fmt: skip
    if finished:
        confusion = [[3, 1], [0, 0]]
        summary["test"] = {"accuracy": 0.75, "mean_class_accuracy": 0.75, "confusion": confusion}
    if truth:
        summary["relabeling"] = {
            "right_before": 0.5, "right_after": 0.875, "precision": None, "recall": 0.125,
        }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "config.yaml").write_text(yaml.safe_dump({"epochs": 2, "out": path.name}))
    known = TRUE if truth else [""] * len(GIVEN)
    rows = [
        (i, f"{i}.png", y, CLASSES[y], t) for i, (y, t) in enumerate(zip(GIVEN, known, strict=True))
    ]
    write_csv(path / "samples.csv", "sample source label label_name true_label", rows)
    ledger = LabelLedger(torch.tensor(GIVEN), len(CLASSES))
    for sample, epoch, new, uncertainty, margin in RELABELS:
        ledger.record(
            torch.tensor([sample]), torch.tensor([new]), epoch=epoch, rule="bayes", threshold=0.5,
            uncertainty=torch.tensor([uncertainty]), margin=torch.tensor([margin]),
        )  # fmt: skip
    ledger.decide(torch.tensor([17]), torch.tensor([0]))
    ledger.revert(ids=torch.tensor([2]))
    state = {f"ledger.{name}": tensor.numpy() for name, tensor in ledger.state_dict().items()}
    state["uncertainty"] = np.linspace(0, 1, 20, dtype=np.float32)
    save_file(state, path / "uerm.safetensors")
    if finished:
        random = np.random.default_rng(0)
        save_file(
            {
                "mapped": np.arange(20),
                "features": random.normal(size=(20, 5)).astype(np.float32),
                "pictured": np.array([0, 16, 17]),
                "thumbnails": random.integers(0, 255, (3, 3, 8, 8), dtype=np.uint8),
            },
            path / "snapshot.safetensors",
        )
    return path
