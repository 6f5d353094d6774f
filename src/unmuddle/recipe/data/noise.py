"""Noise in training labels. The true labels are kept, to score relabeling."""

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from unmuddle.recipe.data.files import Problems
from unmuddle.recipe.data.types import LabeledImages
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.paths import user_path
from unmuddle.recipe.tables import read_table


def add_noise(
    data: LabeledImages, classes: tuple[str, ...], spec: str, seed: int
) -> dict[str, list[str]]:
    """Add noise to the labels of `data`.

    The labels before the noise become the true labels, unless `data` already has true labels.

    With `symmetric:P`, each label is replaced with probability P by another class, drawn uniformly.
    With `pair:P`, it is replaced by the next class, as if annotators confused the two classes. With
    `file:PATH`, the labels of the listed images are replaced. The file is one of:

    - a CSV with the columns `name` (the image file, with its folders where names repeat) and
      `label` (the class name)
    - a `.txt` with lines `NAME NUMBER`, where classes are counted from 1, as in RAF-DB's
      `noise01.txt`

    Args:
        data: training samples.
        classes: class names in label order.
        spec: `none`, `symmetric:P`, `pair:P` or `file:PATH`.
        seed: seed that determines which labels are replaced.

    Returns:
        Places of the rows of a file that were left out, by kind.

    Raises:
        UsageError: the specification or the file is invalid. No label is replaced in this case.
    """
    check_noise(spec)
    kind, _, argument = spec.partition(":")
    problems = Problems()
    if kind == "none":
        return problems.left_out
    if kind == "file":
        noisy = _read_labels(data, classes, user_path("--noise", argument), problems)
    else:
        noise = symmetric_noise if kind == "symmetric" else pair_noise
        noisy = noise(data.labels, len(classes), float(argument), seed)
    data.true_labels = data.labels if data.true_labels is None else data.true_labels
    data.labels = noisy
    return problems.left_out


def check_noise(spec: str) -> None:
    """Raise a UsageError unless `spec` is `none`, `symmetric:P`, `pair:P` or `file:PATH`."""
    found = re.fullmatch(r"(symmetric|pair):(\d*\.?\d+)", spec)
    known = spec == "none" or re.fullmatch(r"file:.+", spec)
    if not known and not (found and 0 <= float(found[2]) <= 1):
        raise UsageError(
            f"--noise {spec}: expected none, file:PATH, symmetric:P or pair:P with 0 <= P <= 1, "
            "e.g. symmetric:0.2"
        )


def symmetric_noise(labels: Tensor, num_classes: int, probability: float, seed: int) -> Tensor:
    """Replace each label with this probability by another class, drawn uniformly."""
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(len(labels), generator=generator) < probability
    step = torch.randint(1, num_classes, (len(labels),), generator=generator)
    return torch.where(flip, (labels + step) % num_classes, labels)


def pair_noise(labels: Tensor, num_classes: int, probability: float, seed: int) -> Tensor:
    """Replace each label with this probability by the next class."""
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(len(labels), generator=generator) < probability
    return torch.where(flip, (labels + 1) % num_classes, labels)


def _read_labels(
    data: LabeledImages, classes: tuple[str, ...], path: Path, problems: Problems
) -> Tensor:
    with refusing(f"--noise file:{path}"):
        rows = _read_lines(path, classes) if path.suffix == ".txt" else _read_csv(path)
    samples_of: dict[str, list[int]] = defaultdict(list)
    for sample in range(len(data)):
        for name in _names(data.source(sample)):
            samples_of[name].append(sample)
    labels, listed = data.labels.clone(), set[int]()
    for number, (name, label) in rows:
        samples = samples_of.get(name.replace("_aligned.", "."), [])
        if label not in classes:
            problems.add(f"label that is none of {', '.join(classes)}", f"row {number}: {label}")
        elif len(samples) > 1:
            problems.add("name of several images; give the folder too", f"row {number}: {name}")
        elif listed.intersection(samples):
            problems.add("image listed twice", f"row {number}: {name}")
        elif samples:
            labels[samples] = classes.index(label)
        else:
            where = f"{path}: row {number}: {name}"
            problems.leave_out("row of the noise file that names no training image", where)
        listed.update(samples)
    if not listed:
        problems.add("file without any of the training images", str(path))
    problems.raise_if_any(f"--noise file:{path}")
    return labels


_Rows = list[tuple[int, tuple[str, str]]]  # (row number, (image name, class name))


def _read_csv(path: Path) -> _Rows:
    rows = read_table(path, ("name", "label"))
    return [(number, (row["name"] or "", row["label"])) for number, row in rows]


def _read_lines(path: Path, classes: tuple[str, ...]) -> _Rows:
    name_of = {str(number): name for number, name in enumerate(classes, start=1)}
    if any(name.isdecimal() and name_of.get(name) != name for name in classes):
        raise ValueError(
            "it counts classes from 1, and these have other numbers as names: "
            f"{', '.join(classes)}; give a CSV with the columns name and label"
        )
    rows: _Rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            rows.append((number, (name, name_of.get(label.strip(), label))))
    return rows


def _names(source: str) -> list[str]:
    """Return all names of an image: its file name with any number of its parent folders.

    "_aligned" is dropped, because RAF-DB lists the original files but contains the aligned ones.
    """
    parts = source.replace("_aligned.", ".").split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]
