"""The file of decisions about labels, keyed by the content of an image and its place.

`unmuddle audit` writes it and a person fills in its decisions; a run writes one of what it
relabeled. `unmuddle train --labels` and `unmuddle repair` read it.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unmuddle.recipe.data import LabeledImages, Splits
from unmuddle.recipe.data.files import listing
from unmuddle.recipe.errors import UsageError
from unmuddle.uerm import LabelLedger

ACCEPT, REJECT = "accept", "reject"
KEEP = "keep"  # the suggested label, which a run chose and nobody verified
TO = "to "  # a third class
_NEEDED = ("source", "label", "suggested", "decision", "content")


class Row(NamedTuple):
    """One label in question.

    Attributes:
        sample: its id in the split.
        split: train, val or test.
        source: file of the image, if any.
        label: name of the class as given.
        suggested: name of another class.
        decision: "accept" the suggested label, "reject" it, "to CLASS" for a third class, "keep"
            the suggested label unverified, or "" for none yet.
        content: digest of the pixels.
    """

    sample: int
    split: str
    source: str
    label: str
    suggested: str
    decision: str
    content: str


class Decision(NamedTuple):
    """The label of one sample.

    Attributes:
        split: train, val or test.
        sample: its id there.
        label: chosen class.
        verified: True where a person chose it, False where a run did.
    """

    split: str
    sample: int
    label: int
    verified: bool


class Decisions(NamedTuple):
    """Decisions of a file that the data has a sample for, and places of the others by reason."""

    found: list[Decision]
    conflicts: Mapping[str, Sequence[str]]

    def enter(self, ledger: LabelLedger) -> None:
        """Record those of the training samples."""
        for verified, record in ((True, ledger.decide), (False, ledger.keep)):
            of_kind = [d for d in self.found if d.split == "train" and d.verified == verified]
            ids, labels = [d.sample for d in of_kind], [d.label for d in of_kind]
            record(torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64))

    def apply(self, splits: Splits) -> None:
        """Correct the labels of the validation and test samples that a person verified."""
        for split, sample, label, verified in self.found:
            if split != "train" and verified:
                splits.parts()[split].labels[sample] = label

    def check_any(self, option: str) -> None:
        """Raise a UsageError if no decision fits the data."""
        if self.conflicts and not self.found:
            raise UsageError("\n".join([f"{option}: no decision fits", *listing(self.conflicts)]))

    def describe(self) -> str:
        """Count them, in all and by split."""
        counts = Counter(decision.split for decision in self.found)
        of_splits = ", ".join(f"{count} of {name}" for name, count in counts.items())
        return f"{len(self.found)} decisions" + (f" ({of_splits})" if of_splits else "")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a header and the rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


def rows_of(ledger: LabelLedger, data: LabeledImages, classes: tuple[str, ...]) -> Iterator[Row]:
    """Yield every changed or fixed label: accepted where a person verified it, else kept."""
    before, now, verified = ledger.original_labels, ledger.current_labels, ledger.human_verified()
    for i in ((now != before) | ledger.fixed()).nonzero()[:, 0].tolist():
        label, chosen = classes[int(before[i])], classes[int(now[i])]
        decision = ACCEPT if verified[i] else KEEP
        yield Row(i, "train", data.source(i), label, chosen, decision, data.content(i))


def check_undecided(path: Path) -> None:
    """Raise a UsageError if the file is there and holds decisions, which must not be lost."""
    if not path.is_file():
        return
    try:
        rows = _read_rows(path)
    except ValueError as error:
        raise UsageError(f"{path}: {error}; give another --out, or move it") from error
    decided = sum(bool(row["decision"]) for _, row in rows)
    if decided:
        raise UsageError(f"{path}: holds {decided} decisions; give another --out, or move it")


def read_decisions(path: Path, splits: Splits) -> Decisions:
    """Read the labels that a person accepted, rejected or chose, or that an earlier run chose.

    Images are recognised by their pixels, and among equal ones by the end of their path: files may
    come, go and move, and splits may differ. A decision that fits no image is a conflict.

    Raises:
        UsageError: the file is not readable, or holds no decision.
    """
    option = f"--labels {path}"
    try:
        rows = _read_rows(path)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    images = _Images(splits)
    found: dict[tuple[str, int], Decision] = {}
    conflicts: dict[str, list[str]] = defaultdict(list)
    for line, row in rows:
        if row["decision"] == "":
            continue
        decision = _resolve(row, images, splits)
        if not isinstance(decision, str):
            earlier = found.setdefault(decision[:2], decision)
            decision = earlier if earlier == decision else "image decided twice, differently"
        if isinstance(decision, str):
            conflicts[decision].append(f"line {line}: {row['source'] or row['content']}")
    if rows and not found and not conflicts:
        raise UsageError(f"{option}: no row holds a decision")
    return Decisions(list(found.values()), conflicts)


class _Images:
    """All samples by content, and the ends of their paths."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits.parts()
        self.by_content: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.places = set[tuple[str, ...]]()
        for name, part in self.splits.items():
            for sample in range(len(part)):
                self.by_content[part.content(sample)].append((name, sample))
                self.places.add(Path(part.source(sample)).parts[-2:])

    def find(self, content: str, source: str) -> tuple[str, int] | str:
        """Return split and id, or what is wrong."""
        alike = self.by_content.get(content, [])
        if not alike:
            is_there = source and Path(source).parts[-2:] in self.places
            return "image that has changed" if is_there else "image that is not there any more"
        wanted = Path(source).parts[::-1]

        def agreeing(place: tuple[str, int]) -> int:
            parts = Path(self.splits[place[0]].source(place[1])).parts[::-1]
            pairs = zip(wanted, parts, strict=False)
            return len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])

        best = max(map(agreeing, alike))
        nearest = [place for place in alike if agreeing(place) == best]
        return nearest[0] if len(nearest) == 1 else "one of several equal images, unclear which"


def _resolve(row: Mapping[str | None, Any], images: _Images, splits: Splits) -> Decision | str:
    """Return the decision of a row, or what is wrong."""
    if None in row or None in row.values():
        return "row of another length than the header"
    classes, decision = splits.classes, row["decision"]
    words = {ACCEPT: row["suggested"], KEEP: row["suggested"], REJECT: row["label"]}
    words |= {f"{TO}{name}": name for name in classes}
    if decision not in words:
        return f"decision that is none of {', '.join(words)}"
    chosen = words[decision]
    if chosen not in classes:
        return f"class that is none of {', '.join(classes)}"
    place = images.find(row["content"], row["source"])
    if isinstance(place, str):
        return place
    now = classes[int(images.splits[place[0]].labels[place[1]])]
    if now not in (row["label"], chosen):
        return "label that is another one now; for a run with noise give its --noise and --seed"
    return Decision(*place, classes.index(chosen), decision != KEEP)


def _read_rows(path: Path) -> list[tuple[int, dict[str | None, Any]]]:
    """Read rows by column, each with the number of its line.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            # Spreadsheets write what their country separates by.
            reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count))
            found, rows = reader.fieldnames or (), [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"not readable: {error}") from error
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(
            f"lacks the columns {', '.join(missing)}; "
            f"its first row holds {', '.join(found) or 'nothing'}"
        )
    for _, row in rows:
        if isinstance(row["decision"], str):
            row["decision"] = row["decision"].strip()
            if row["decision"].lower() in (ACCEPT, REJECT, KEEP):  # spreadsheets capitalise words
                row["decision"] = row["decision"].lower()
    return rows
