"""`PATH/{train,val,test}/<class>/<image>`, the layout of torchvision's ImageFolder."""

from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from unmuddle.recipes.data.files import Problems, find_images, read_images
from unmuddle.recipes.data.split import split_off_validation
from unmuddle.recipes.data.types import LabeledImages, Splits
from unmuddle.recipes.errors import UsageError

SIZE = 224


def load_folder(root: Path, image_size: int | None, seed: int) -> Splits:
    """Classes are the folders of `train`; without `val`, 10 % of `train` is split off."""
    problems = Problems()
    for needed in ("train", "test"):
        if not (root / needed).is_dir():
            problems.add("missing folder", str(root / needed))
    problems.raise_if_any(root)
    classes = _class_names(root / "train")
    if len(classes) < 2:
        raise UsageError(
            f"{root / 'train'}: expected at least 2 class folders, got {len(classes)}: {classes}"
        )

    size = image_size or SIZE
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    parts = {name: _read_part(root / name, classes, size, problems) for name in names}
    problems.raise_if_any(root)
    if "val" not in parts:
        parts["train"], parts["val"] = split_off_validation(parts["train"], seed)
    return Splits(parts["train"], parts["val"], parts["test"], tuple(classes), size)


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _read_part(folder: Path, classes: list[str], size: int, problems: Problems) -> LabeledImages:
    for name in _class_names(folder):
        if name not in classes:
            problems.add("class that train does not have", str(folder / name))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = find_images(folder / name)
        if not found and folder.name == "train":
            problems.add(f"class without images ({' '.join(IMG_EXTENSIONS)})", str(folder / name))
        paths += found
        labels += [label] * len(found)
    if not paths:
        problems.add("no images", str(folder))
    return LabeledImages(
        read_images(paths, size, problems),
        torch.tensor(labels, dtype=torch.int64),
        sources=[str(path) for path in paths],
    )
