"""RAF-DB, basic: 15,339 real faces of seven expressions (Li et al. 2017)."""

from dataclasses import replace
from pathlib import Path

from unmuddle.recipe.data.files import Problems, read_labeled
from unmuddle.recipe.data.folder import load_folder
from unmuddle.recipe.data.split import split_off
from unmuddle.recipe.data.types import LabeledImages, Splits
from unmuddle.recipe.errors import UsageError, refusing

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SIZE = 100
_LIST = Path("EmoLabel/list_patition_label.txt")  # the official spelling


def load_rafdb(root: Path, image_size: int | None, seed: int, problems: Problems) -> Splits:
    """Load the official list and aligned faces, or class folders `{train,test}/{1,...,7}`.

    RAF-DB has no validation split, so 10 % of train are split off.
    """
    size = image_size or SIZE
    if all((root / "train" / str(number)).is_dir() for number in range(1, 8)):
        return replace(load_folder(root, size, seed, problems), classes=CLASSES)
    if not (root / _LIST).is_file():
        raise UsageError(f"{root}: expected {_LIST} and Image/aligned, or train/1 ... test/7")
    labels = _read_list(root, problems)
    parts: list[LabeledImages] = []
    for part in ("train", "test"):
        paths = [path for path in labels if _part(path) == part]
        parts.append(read_labeled(part, paths, [labels[path] for path in paths], size, problems))
    problems.raise_if_any(root)
    train, val = split_off(parts[0], seed, CLASSES)
    return Splits(train, val, parts[1], CLASSES, size)


def _part(image: Path) -> str:
    return image.name.partition("_")[0]


def _read_list(root: Path, problems: Problems) -> dict[Path, int]:
    labels: dict[Path, int] = {}
    with refusing(f"{root / _LIST}: not readable"):
        lines = (root / _LIST).read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{root / _LIST}:{number}: {line[:60]}"
        name, _, label = line.strip().partition(" ")
        image = root / "Image" / "aligned" / f"{Path(name).stem}_aligned{Path(name).suffix}"
        if Path(name).name != name or _part(image) not in ("train", "test"):
            problems.add("image name that is not train_... or test_...", where)
        elif label not in ("1", "2", "3", "4", "5", "6", "7"):
            problems.add("label that is not from 1 to 7", where)
        elif image in labels:
            problems.add("image listed twice", where)
        else:
            labels[image] = int(label) - 1
    if (root / "Image" / "aligned").is_dir():
        for unlisted in sorted({*(root / "Image" / "aligned").iterdir()} - labels.keys()):
            problems.leave_out("file that the list does not name", str(unlisted))
    return labels
