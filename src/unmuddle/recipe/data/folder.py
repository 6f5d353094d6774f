"""`PATH/{train,val,test}/<class>/<image>`, the layout of torchvision's ImageFolder."""

from pathlib import Path

import torch

from unmuddle.recipe.data.files import Problems, find_images, read_labeled
from unmuddle.recipe.data.split import split_off_validation
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError

SIZE = 224
_SPLITS = ("train", "val", "test")


def load_folder(root: Path, image_size: int | None, seed: int, problems: Problems) -> Splits:
    """Classes are the folders of `train`; without `val`, 10 % of `train` is split off."""
    for needed in ("train", "test"):
        if not (root / needed).is_dir():
            problems.add("missing folder", str(root / needed))
    problems.raise_if_any(root)
    for entry in sorted(root.iterdir()):
        if entry.name not in _SPLITS:
            problems.leave_out(f"entry that is none of {', '.join(_SPLITS)}", str(entry))
    classes = _class_names(root / "train")
    if len(classes) < 2:
        raise UsageError(
            f"{root / 'train'}: expected at least 2 class folders, got {len(classes)}: {classes}"
        )

    size = image_size or SIZE
    names = [name for name in _SPLITS if (root / name).is_dir()]
    parts = {name: _read_part(root / name, classes, size, problems) for name in names}
    problems.raise_if_any(root)
    if "val" not in parts:
        parts["train"], parts["val"] = split_off_validation(parts["train"], seed, classes)
    return Splits(parts["train"], parts["val"], parts["test"], tuple(classes), size)


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if _is_class(entry))


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _read_part(folder: Path, classes: list[str], size: int, problems: Problems) -> LabeledImages:
    for entry in sorted(folder.iterdir()):
        if not _is_class(entry):
            problems.leave_out("entry that is not a class folder", str(entry))
        elif entry.name not in classes:
            problems.add("class that train does not have", str(entry))
    found = [
        find_images(folder / name, problems) if _is_class(folder / name) else [] for name in classes
    ]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([*map(len, found)]))
    part = read_labeled([path for paths in found for path in paths], labels, size, problems)
    if folder.name == "train":
        for name in part.without_images(classes):
            problems.add("class without images", str(folder / name))
    elif not len(part):
        problems.add("no images", str(folder))
    return part
