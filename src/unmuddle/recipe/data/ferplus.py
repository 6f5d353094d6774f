"""FERPlus: FER2013 faces, each labeled by ten annotators."""

import csv
from pathlib import Path

import torch
from torch import Tensor

from unmuddle.recipe.data.files import Problems, read_labeled
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import refusing

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
SIZE = 48
_FOLDERS = ("FER2013Train", "FER2013Valid", "FER2013Test")
_VOTE_COLUMNS = 10  # the eight classes, unknown, not a face


def load_ferplus(root: Path, image_size: int | None, _seed: int, problems: Problems) -> Splits:
    """Load the official layout, `label.csv` in each folder, by the official majority rule.

    There are eight classes. An emotion with a single vote counts as having none. A face is left out
    if its top emotion has at most half of the remaining votes, or if its majority is "unknown" or
    "not a face".
    """
    size = image_size or SIZE
    parts = [_read_part(root / name, size, problems) for name in _FOLDERS]
    problems.raise_if_any(root)
    return Splits(*parts, classes=CLASSES, image_size=size)


def majority(votes: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels `(n,)`, -1 for faces that are left out, and vote distributions `(n, 8)`.

    Args:
        votes: `(n, 10)` vote counts.
    """
    votes = votes.where(votes > 1, 0).float()
    top, label = votes.max(1)
    clear = (top > 0.5 * votes.sum(1)) & (label < len(CLASSES))
    emotions = votes[:, : len(CLASSES)]
    distribution = emotions / emotions.sum(1, keepdim=True).clamp(min=1)
    return torch.where(clear, label, -1), distribution


def _read_part(folder: Path, size: int, problems: Problems) -> LabeledImages:
    votes_of: dict[str, list[int]] = {}
    table = folder / "label.csv"
    with refusing(f"{table}: not readable"), table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    for number, row in enumerate(rows, start=1):
        where = f"{table}:{number}"
        if not row:
            continue
        if not row[0].strip():  # the original list has some
            problems.leave_out("row without an image", where)
            continue
        votes = _parse_votes(row[2:])
        if votes is None:
            problems.add(f"row without {_VOTE_COLUMNS} votes, each from 0 to 10", where)
        elif (name := row[0].strip()) in votes_of:
            problems.add("image listed twice", f"{where}: {name}")
        else:
            votes_of[name] = votes

    unlisted = {path.name for path in folder.iterdir()} - votes_of.keys() - {"label.csv"}
    for name in sorted(unlisted):
        problems.leave_out("file that label.csv does not name", str(folder / name))
    labels, distribution = majority(
        torch.tensor(list(votes_of.values())).reshape(-1, _VOTE_COLUMNS)
    )
    paths, given = [folder / name for name in votes_of], labels.tolist()
    faces = read_labeled(
        folder, paths, given, size, problems, true_labels=labels, votes=distribution
    )
    for sample in (faces.labels < 0).nonzero()[:, 0].tolist():
        problems.leave_out("face without a majority emotion", faces.source(sample))
    faces = faces.subset((faces.labels >= 0).nonzero()[:, 0])
    if not len(faces):
        problems.add("no face with a majority emotion", str(folder))
    return faces


def _parse_votes(cells: list[str]) -> list[int] | None:
    try:
        votes = [int(cell) for cell in cells]
    except ValueError:
        return None
    return votes if len(votes) == _VOTE_COLUMNS and all(0 <= v <= 10 for v in votes) else None
