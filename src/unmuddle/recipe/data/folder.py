"""Folders of images, one folder per class, as torchvision reads them.

The layout is `PATH/<class>/<image>` or `PATH/{train,val,test}/<class>/<image>`.
"""

from pathlib import Path

from unmuddle.recipe.data.files import Problems, find_images, read_labeled, typical_side
from unmuddle.recipe.data.split import split_off
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError

SIZE = 224  # largest default side length in pixels
SPLITS = ("train", "val", "test")


def load_folder(root: Path, image_size: int | None, seed: int, problems: Problems) -> Splits:
    """Read classes and images, and create the splits that have no folder.

    Without `train` and `test`, the folders in `PATH` are the classes. 10 % of each class become the
    test split, and 10 % of the rest the validation split, at random by the seed. If only `val` is
    missing, 10 % of `train` become the validation split.
    """
    parts, classes, size = read_folder(root, image_size, problems)
    if "" in parts:
        parts["train"], parts["test"] = split_off(parts.pop(""), seed, classes)
    if "val" not in parts:
        parts["train"], parts["val"] = split_off(parts["train"], seed, classes)
    return Splits(parts["train"], parts["val"], parts["test"], classes, size)


def read_folder(
    root: Path, image_size: int | None, problems: Problems
) -> tuple[dict[str, LabeledImages], tuple[str, ...], int]:
    """Return the images by split, the class names, and the image size.

    If the folder has no splits, all images are under the key "".
    """
    is_split = any((root / name).is_dir() for name in ("train", "test"))
    names = [name for name in SPLITS if (root / name).is_dir()] if is_split else [""]
    for needed in ("train", "test"):
        if is_split and needed not in names:
            problems.add("missing folder", str(root / needed))
    problems.raise_if_any(root)
    if is_split:
        for entry in sorted(root.iterdir()):
            if entry.name not in SPLITS:
                problems.leave_out(f"entry that is none of {', '.join(SPLITS)}", str(entry))
    first = root / names[0]
    classes = sorted(entry.name for entry in first.iterdir() if _is_class(entry))
    if len(classes) < 2:
        raise UsageError(
            f"{first}: expected at least 2 class folders, got {len(classes)}: {classes}"
        )

    files = {name: _find(root / name, classes, problems) for name in names}
    size = image_size or min(
        SIZE, typical_side([path for found in files.values() for path in found])
    )
    parts = {
        name: read_labeled(root / name, [*found], [*found.values()], size, problems)
        for name, found in files.items()
    }
    for name in parts[names[0]].without_images(classes):
        problems.add("class without images", str(first / name))
    problems.raise_if_any(root)
    return parts, tuple(classes), size


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _find(folder: Path, classes: list[str], problems: Problems) -> dict[Path, int]:
    """Return the image files of a folder with their labels."""
    for entry in sorted(folder.iterdir()):
        if not _is_class(entry):
            problems.leave_out("entry that is not a class folder", str(entry))
        elif entry.name not in classes:
            problems.add("class that train does not have", str(entry))
    return {
        path: label
        for label, name in enumerate(classes)
        if _is_class(folder / name)
        for path in find_images(folder / name, problems)
    }
