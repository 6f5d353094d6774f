"""FER2013: 35,887 real faces of seven expressions in one table (Goodfellow et al. 2013)."""

from pathlib import Path

import numpy as np
import torch

from unmuddle.recipe.data.files import Problems
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.tables import read_table

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
SIZE = 48
_FILES = ("fer2013.csv", "icml_face_data.csv")
_PARTS = ("Training", "PublicTest", "PrivateTest")


def load_fer2013(root: Path, image_size: int | None, _seed: int, problems: Problems) -> Splits:
    """Load `fer2013.csv` or `icml_face_data.csv`. The public test is the validation split."""
    table = next((root / name for name in _FILES if (root / name).is_file()), None)
    if table is None:
        raise UsageError(f"{root}: expected {' or '.join(_FILES)}")
    labels: dict[str, list[int]] = {part: [] for part in _PARTS}
    pixels: dict[str, list[np.ndarray]] = {part: [] for part in _PARTS}
    with refusing(table):
        for number, row in read_table(table, ("emotion", "pixels", "Usage"), skipinitialspace=True):
            grey = _parse_pixels(row["pixels"])
            if grey is not None and row["Usage"] in _PARTS and row["emotion"] in tuple("0123456"):
                labels[row["Usage"]].append(int(row["emotion"]))
                pixels[row["Usage"]].append(grey)
            else:
                kind = f"row without {SIZE} x {SIZE} pixels, an emotion from 0 to 6 and a Usage"
                problems.add(kind, f"{table}:{number}")
    for part in _PARTS:
        if not labels[part]:
            problems.add("no images", part)
    problems.raise_if_any(root)
    parts = [
        LabeledImages(
            torch.from_numpy(np.stack(pixels[part]))[:, None].expand(-1, 3, -1, -1),
            torch.tensor(labels[part], dtype=torch.int64),
        )
        for part in _PARTS
    ]
    return Splits(*parts, classes=CLASSES, image_size=image_size or SIZE)


def _parse_pixels(text: str | None) -> np.ndarray | None:
    try:
        values = np.array((text or "").split(), dtype=np.int64)
    except (ValueError, OverflowError):
        return None
    if values.size != SIZE * SIZE or values.min() < 0 or values.max() > 255:
        return None
    return values.astype(np.uint8).reshape(SIZE, SIZE)
