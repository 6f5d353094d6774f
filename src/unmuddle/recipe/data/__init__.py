"""Data sets by name."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torchvision.transforms import v2

from unmuddle.recipe.data.affectnet import load_affectnet
from unmuddle.recipe.data.digits import load_digits
from unmuddle.recipe.data.fer2013 import load_fer2013
from unmuddle.recipe.data.ferplus import load_ferplus
from unmuddle.recipe.data.files import Problems
from unmuddle.recipe.data.folder import load_folder
from unmuddle.recipe.data.rafdb import load_rafdb
from unmuddle.recipe.data.synthetic import load_synthetic
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.paths import user_path

__all__ = ["LabeledImages", "Splits", "load_data"]

_ON_DISK: dict[str, Callable[[Path, int | None, int, Problems], Splits]] = {
    "folder": load_folder,
    "rafdb": load_rafdb,
    "ferplus": load_ferplus,
    "affectnet": load_affectnet,
    "affectnet7": partial(load_affectnet, classes=7),
    "fer2013": load_fer2013,
}
_NAMES = ", ".join(["synthetic", "synthetic:N", "digits", *(f"{name}:PATH" for name in _ON_DISK)])


def load_data(
    spec: str, *, image_size: int | None = None, seed: int = 0, skip_unreadable: bool = False
) -> Splits:
    """Load a data set: `synthetic[:N]` (N training faces), `digits`, or `NAME:PATH` from disk.

    Args:
        spec: data set to load, as above.
        image_size: image side length in pixels; by default that of the data set.
        seed: seed of the splits that the data set does not have.
        skip_unreadable: whether to leave out images that cannot be read.

    Raises:
        UsageError: the name is unknown, or the files have problems. The message lists all problems.
    """
    name, _, argument = spec.partition(":")
    problems = Problems(skip_unreadable=skip_unreadable)
    if name in _ON_DISK:
        if not argument:
            raise UsageError(f"--data {spec}: expected {name}:PATH")
        root = user_path("--data", argument)
        if not root.is_dir():
            raise UsageError(f"--data {spec}: no such folder: {root}; if it has moved, give --data")
        splits = _ON_DISK[name](root, image_size, seed, problems)
    elif spec == "digits":
        splits = load_digits(seed)
    elif re.fullmatch(r"synthetic(:[1-9]\d{0,6})?", spec):
        splits = load_synthetic(int(argument)) if argument else load_synthetic()
    else:
        hint = f"; did you mean folder:{spec}?" if Path(spec).is_dir() else ""
        raise UsageError(f"--data {spec}: unknown data set; expected one of {_NAMES}{hint}")
    # Images in memory keep their size. The transform resizes them to the network's input size.
    splits.image_size = image_size or splits.image_size
    splits.left_out = problems.left_out
    for part in splits.parts().values():
        part.transform = v2.Resize((splits.image_size,) * 2, antialias=True)
    return splits
