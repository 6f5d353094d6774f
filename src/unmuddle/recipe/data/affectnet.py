"""AffectNet: 290,000 real faces of eight expressions (Mollahosseini et al. 2017)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from unmuddle.recipe.data.files import Box, Problems, find_images, read_labeled
from unmuddle.recipe.data.split import split_off
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.tables import read_table

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
SIZE = 224
_LISTS = Path("Manually_Annotated_file_lists")
_IMAGES = Path("Manually_Annotated_Images")
_COLUMNS = ("face_x", "face_y", "face_width", "face_height", "expression")


class _Face(NamedTuple):
    image: Path
    label: int
    box: Box | None


def load_affectnet(
    root: Path, image_size: int | None, seed: int, problems: Problems, *, classes: int = 8
) -> Splits:
    """Load the official lists and images, or `{train_set,val_set}/{images,annotations}`.

    The seven classes are those without contempt. Faces without one of the expressions are left out.
    Results are by convention reported on the validation set, so it is the test split here. 10 % of
    the training set become the validation split.
    """
    if (root / _LISTS).is_dir():
        faces = [_read_list(root, name, problems) for name in ("training", "validation")]
    elif (root / "train_set").is_dir():
        faces = [_read_annotations(root / name, problems) for name in ("train_set", "val_set")]
    else:
        raise UsageError(f"{root}: expected {_LISTS} and {_IMAGES}, or train_set and val_set")
    parts: list[LabeledImages] = []
    for found, name in zip(faces, ("training set", "validation set"), strict=True):
        kept: list[_Face] = []
        for face in sorted(found):
            if face.label in range(classes):
                kept.append(face)
            else:
                problems.leave_out(f"face of none of the {classes} expressions", str(face.image))
        images, labels, boxes = zip(*kept, strict=True) if kept else ((), (), ())
        parts.append(
            read_labeled(
                name,
                images,
                labels,
                image_size or SIZE,
                problems,
                boxes=boxes if any(boxes) else None,
            )
        )
    problems.raise_if_any(root)
    train, val = split_off(parts[0], seed, CLASSES[:classes])
    return Splits(train, val, parts[1], CLASSES[:classes], image_size or SIZE)


def _read_list(root: Path, name: str, problems: Problems) -> list[_Face]:
    path = root / _LISTS / f"{name}.csv"
    faces: list[_Face] = []
    with refusing(path):
        rows = read_table(path, ("subDirectory_filePath", *_COLUMNS), skipinitialspace=True)
        for number, row in rows:
            image = root / _IMAGES / (row["subDirectory_filePath"] or "")
            try:
                x, y, width, height, label = (int(float(row[column])) for column in _COLUMNS)
            except (TypeError, ValueError, OverflowError):
                problems.add("row without a box and an expression, as numbers", f"{path}:{number}")
                continue
            if label < len(CLASSES) and min(width, height) <= 0:
                problems.leave_out("face with an empty box", str(image))
            else:
                faces.append(_Face(image, label, (x, y, x + width, y + height)))
    return faces


def _read_annotations(folder: Path, problems: Problems) -> list[_Face]:
    faces: list[_Face] = []
    for image in find_images(folder / "images", problems):
        path = folder / "annotations" / f"{image.stem}_exp.npy"
        try:
            label = int(str(np.load(path, allow_pickle=False)))  # a string in some copies
            faces.append(_Face(image, label, None))
        except (OSError, ValueError, EOFError):
            problems.add("image without a whole number as its annotation", str(path))
    return faces
