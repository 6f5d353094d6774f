"""A repaired copy of a folder of images; the original is never changed."""

import csv
import filecmp
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from unmuddle.recipe.atomic import make_folder, write_table
from unmuddle.recipe.data import Splits, load_data
from unmuddle.recipe.data.files import listing
from unmuddle.recipe.data.folder import SPLITS
from unmuddle.recipe.decisions import Decisions, read_decisions
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.paths import user_path

MANIFEST = "manifest.csv"
Way = Literal["copy", "link", "list"]


class Placed(NamedTuple):
    """Place of an image in the repaired folder.

    Attributes:
        source: file in the original folder.
        target: file in the repaired one, relative to it.
        label: class as given.
        new_label: class now.
    """

    source: str
    target: str
    label: str
    new_label: str


def repair(data: str, labels: Path, out: Path, way: Way = "copy") -> str:
    """Write the images of a folder under the classes that were decided; describe what was done.

    `manifest.csv` lists every image; `list` writes it alone. An image whose new place is taken by
    another one gets a name of its own. Repairing again changes nothing, and after other decisions
    removes what an earlier repair has put elsewhere.

    Args:
        data: `folder:PATH`.
        labels: file of decisions.
        out: folder to write.
        way: copy the images, link to them, or only list them.

    Raises:
        UsageError: the data is no folder of classes, no decision fits it, or `out` holds something
            else.
    """
    kind, _, argument = data.partition(":")
    if kind != "folder":
        raise UsageError(f"--data {data}: expected folder:PATH")
    root = user_path("--data", argument)
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--out {out}: is in the folder that is repaired")
    before = _earlier(out)
    splits = load_data(data, image_size=8, skip_unreadable=True)  # digests are of the whole image
    decisions = read_decisions(labels, splits)
    decisions.check_any(f"--labels {labels}")
    placed = list(_place(root, splits, decisions))
    make_folder("--out", out)
    for target in before - {place.target for place in placed}:
        (out / target).unlink(missing_ok=True)
    written = sum(_put(Path(place.source), out / place.target, way) for place in placed)
    write_table(out / MANIFEST, Placed._fields, placed)
    moved = sum(place.label != place.new_label for place in placed)
    lines = [f"{len(placed)} images, {moved} of them in another class, {written} files written"]
    for name, kinds in (("left out", splits.left_out), ("not decided", decisions.conflicts)):
        if kinds:
            lines += [f"{name}:", *listing(kinds)]
    return "\n".join([*lines, f"{out / MANIFEST}"])


def _earlier(out: Path) -> set[str]:
    """Return the files of an earlier repair."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    try:
        lines = (out / MANIFEST).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--out {out}: exists and is no repaired folder") from error
    return {row["target"] for row in csv.DictReader(lines)}


def _place(root: Path, splits: Splits, decisions: Decisions) -> Iterator[Placed]:
    chosen = {(d.split, d.sample): d.label for d in decisions.found}
    samples = [
        (part.source(i), int(part.labels[i]), chosen.get((name, i)))
        for name, part in splits.parts().items()
        for i in range(len(part))
    ]
    places: list[tuple[str, Path, int, int]] = []
    for source, given, decided in sorted(samples):
        inside = Path(source).relative_to(root)
        depth = 1 if inside.parts[0] in SPLITS and len(inside.parts) > 2 else 0
        new = given if decided is None else decided
        parts = (*inside.parts[:depth], splits.classes[new], *inside.parts[depth + 1 :])
        places.append((source, Path(*parts), given, new))
    taken = Counter(target for _, target, _, _ in places)
    for source, target, given, new in places:
        label = splits.classes[given]
        if new != given and taken[target] > 1:
            target = target.with_stem(f"{target.stem}-from-{label}")
        yield Placed(source, str(target), label, splits.classes[new])


def _put(source: Path, target: Path, way: Way) -> bool:
    """Put an image in its place; return whether it was not there yet."""
    if way == "list":
        return False
    is_there = target.is_symlink() == (way == "link") and target.exists()
    if is_there and filecmp.cmp(source, target, shallow=False):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if way == "link":
        target.symlink_to(source.resolve())
    else:
        shutil.copy2(source, target)
    return True
