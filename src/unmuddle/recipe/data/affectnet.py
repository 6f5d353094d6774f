"""AffectNet: 290,000 real faces of eight expressions (Mollahosseini et al. 2017)."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unmuddle.recipe.data.files import Box, Problems, find_images, read_labeled
from unmuddle.recipe.data.split import split_off
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.tables import read_table

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
SIZE = 224
_LISTS = Path("Manually_Annotated_file_lists")
_IMAGES = Path("Manually_Annotated_Images")
_LAST_LABEL = 10  # 8 to 10 are none, uncertain and no face
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
    for found, name in zip(faces, ("training", "validation"), strict=True):
        kept = sorted(face for face in found if face.label < classes)
        for face in sorted(face for face in found if face.label >= classes):
            problems.leave_out(f"face of none of the {classes} expressions", str(face.image))
        boxes = [face.box for face in kept if face.box is not None]
        part = read_labeled(
            [face.image for face in kept],
            torch.tensor([face.label for face in kept], dtype=torch.int64),
            image_size or SIZE,
            problems,
            boxes=boxes or None,
        )
        if not len(part):
            problems.add("no images", f"{name} set")
        parts.append(part)
    problems.raise_if_any(root)
    train, val = split_off(parts[0], seed, CLASSES[:classes])
    return Splits(train, val, parts[1], CLASSES[:classes], image_size or SIZE)


def _read_list(root: Path, name: str, problems: Problems) -> list[_Face]:
    path = root / _LISTS / f"{name}.csv"
    faces: dict[str, _Face] = {}
    try:
        rows = read_table(path, ("subDirectory_filePath", *_COLUMNS), skipinitialspace=True)
        for number, row in rows:
            where = f"{path}:{number}"
            image = Path(row["subDirectory_filePath"] or "")
            try:
                x, y, width, height, label = (int(float(row[column])) for column in _COLUMNS)
            except (TypeError, ValueError, OverflowError):
                problems.add("row without a box and an expression, as numbers", where)
                continue
            if not 0 <= label <= _LAST_LABEL:
                problems.add(f"expression that is not from 0 to {_LAST_LABEL}", where)
            elif image.is_absolute() or ".." in image.parts:
                problems.add("image path that leaves the data set", where)
            elif label >= len(CLASSES):
                problems.leave_out("face of no expression", str(root / _IMAGES / image))
            elif str(image) in faces:
                problems.add("image listed twice", where)
            elif min(width, height) <= 0:
                problems.leave_out("face with an empty box", str(root / _IMAGES / image))
            else:
                box = (x, y, x + width, y + height)
                faces[str(image)] = _Face(root / _IMAGES / image, label, box)
    except ValueError as error:
        problems.add("list that cannot be used", f"{path}: {error}")
    return list(faces.values())


def _read_annotations(folder: Path, problems: Problems) -> list[_Face]:
    faces: list[_Face] = []
    for image in _images(folder, problems):
        path = folder / "annotations" / f"{image.stem}_exp.npy"
        try:
            label = int(str(np.load(path, allow_pickle=False)))  # a string in some copies
        except FileNotFoundError:
            problems.add("image without an annotation", str(path))
        except (OSError, ValueError, EOFError):
            problems.add("annotation that is no whole number", str(path))
        else:
            if not 0 <= label <= _LAST_LABEL:
                problems.add(f"expression that is not from 0 to {_LAST_LABEL}", str(path))
            else:
                faces.append(_Face(image, label, None))
    return faces


def _images(folder: Path, problems: Problems) -> Iterator[Path]:
    if not (folder / "images").is_dir():
        problems.add("missing folder", str(folder / "images"))
        return iter(())
    return iter(find_images(folder / "images", problems))
