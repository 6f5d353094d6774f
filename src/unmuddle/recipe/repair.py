"""Repaired copy of a folder of images. The original is never changed."""

import filecmp
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.data.files import Problems, listing
from unmuddle.recipe.data.folder import read_folder
from unmuddle.recipe.decisions import Decisions, read_decisions
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.paths import check_outside, user_path
from unmuddle.recipe.tables import read_table, write_table

MANIFEST = "manifest.csv"
Way = Literal["copy", "link", "list"]


class Placed(NamedTuple):
    """Place of an image in the repaired folder.

    Attributes:
        source: file in the original folder.
        target: path relative to the repaired folder.
        label: given class.
        new_label: class after the repair.
        decided_by: `person`, `run`, or empty if there is no decision.
    """

    source: str
    target: str
    label: str
    new_label: str
    decided_by: str


def repair(data: str, labels: Path, out: Path, way: Way = "copy") -> str:
    """Write a copy of a folder with every image in its decided class; return a description.

    `manifest.csv` lists every image. With `way="list"`, it is the only file that is written. If the
    new path of an image is taken, the image is renamed. Repairing again with the same decisions
    changes nothing. With other decisions, it removes files that an earlier repair wrote elsewhere.

    Args:
        data: `folder:PATH`.
        labels: CSV file of decisions.
        out: folder to write.
        way: copy the images, link to them, or only list them.

    Raises:
        UsageError: `data` is not a folder of classes, no decision fits it, or `out` is not empty
            and not an earlier repair.
    """
    kind, _, argument = data.partition(":")
    root = user_path("--data", argument).absolute()
    if kind != "folder" or not root.is_dir():
        raise UsageError(f"--data {data}: expected folder:PATH with a folder of classes")
    check_outside("--out", out, data)
    before = _earlier(out)
    if way == "list" and any((out / target).exists() for target in before):
        raise UsageError(f"--out {out}: holds a copy; give another folder for a list")
    problems = Problems(skip_unreadable=True)
    parts, classes, _ = read_folder(root, 8, problems)  # size does not affect digests
    decisions = read_decisions(labels, parts, classes)
    decisions.check_any(f"--labels {labels}")
    placed = list(_place(root, parts, classes, decisions))
    out.mkdir(parents=True, exist_ok=True)
    unread = {
        str(Path(place).relative_to(root))
        for places in problems.left_out.values()
        for place in places
    }
    gone = sorted(before - {place.target for place in placed} - unread)
    for target in gone:
        (out / target).unlink(missing_ok=True)
    write_table(out / MANIFEST, Placed._fields, placed)  # first, so a stopped repair can resume
    written = sum(_put(Path(place.source), out / place.target, way) for place in placed)
    moved = sum(place.label != place.new_label for place in placed)
    done = {"copy": f"{written} copied", "link": f"{written} linked", "list": "none written"}[way]
    lines = [f"{len(placed)} images, {moved} of them in another class, {done}"]
    by_run = sum(not decision.verified for decision in decisions.found)
    by = f", {by_run} of them by a run" if by_run else ""
    lines += [f"{len(decisions.found)} decisions used{by}"]
    for name, places in (
        ("left out", problems.left_out),
        ("decisions not used", decisions.conflicts),
        ("removed from the copy", {"image in no such place any more": gone} if gone else {}),
    ):
        if places:
            lines += [f"{name}:", *listing(places)]
    return "\n".join([*lines, str(out / MANIFEST)])


def _earlier(out: Path) -> set[str]:
    """Return the files that an earlier repair wrote."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    if not (out / MANIFEST).is_file():
        raise UsageError(f"--out {out}: exists and is no repaired folder: it has no {MANIFEST}")
    with refusing(f"--out {out}: exists and is no repaired folder"):
        targets = {row["target"] or "" for _, row in read_table(out / MANIFEST, ("target",))}
        if any(Path(target).is_absolute() or ".." in Path(target).parts for target in targets):
            raise ValueError("a target lies outside the folder")
    return targets


def _place(
    root: Path,
    parts: Mapping[str, LabeledImages],
    classes: Sequence[str],
    decisions: Decisions,
) -> Iterator[Placed]:
    chosen = {(d.split, d.sample): d for d in decisions.found}
    depth = 0 if "" in parts else 1  # of the class folder in the path
    wanted: list[Placed] = []
    for split, part in parts.items():
        for i in range(len(part)):
            given = int(part.labels[i])
            new, by = given, ""
            if decision := chosen.get((split, i)):
                new, by = decision.label, "person" if decision.verified else "run"
            inside = Path(part.source(i)).relative_to(root).parts
            target = Path(*inside[:depth], classes[new], *inside[depth + 1 :])
            wanted.append(Placed(part.source(i), str(target), classes[given], classes[new], by))
    # Images that stay keep their names. A moved image never takes a name that is in use.
    used = {_folded(place.target) for place in wanted if place.label == place.new_label}
    used |= {_folded(folder) for place in wanted for folder in Path(place.target).parents}
    for place in sorted(wanted):
        target, name, number = Path(place.target), Path(place.target), 0
        while place.new_label != place.label and _folded(name) in used:
            number += 1
            name = target.with_stem(
                f"{target.stem}-from-{place.label}" + (f"-{number}" if number > 1 else "")
            )
        used.add(_folded(name))
        yield place._replace(target=str(name))


def _folded(path: Path | str) -> str:
    """Return the path as case-insensitive file systems compare it."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _put(source: Path, target: Path, way: Way) -> bool:
    """Put an image in its place, and return whether it had to be written."""
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
