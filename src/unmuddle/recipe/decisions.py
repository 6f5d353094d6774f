"""CSV file of decisions about labels, keyed by the content and the path of an image.

`unmuddle audit` writes the file, and a person fills in the decisions. A run also writes one, for
the labels that it changed. `unmuddle train --labels` and `unmuddle repair` read the file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.data.files import Problems, listing
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.tables import read_table, write_table
from unmuddle.uerm import LabelLedger

ACCEPT, REJECT = "accept", "reject"
RELABEL = "relabel"  # to the suggested label, which a run chose and no person verified
TO = "to "  # followed by the name of a third class
_WORDS = (ACCEPT, REJECT, RELABEL, TO)
_NEEDED = ("sample", "split", "source", "label", "suggested", "decision", "content")


class Row(NamedTuple):
    """Label that may be wrong, and the decision about it.

    Attributes:
        sample: sample id in the split.
        split: train, val or test.
        source: file of the image, if any.
        label: name of the given class.
        suggested: name of the suggested class.
        decision: "accept" or "reject" for the suggested label, "to CLASS" for a third class,
            "relabel" for the suggested label without verification, or "" if undecided.
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
    """Decision about the label of one sample.

    Attributes:
        split: train, val or test.
        sample: sample id in the split.
        label: chosen class.
        verified: `True` if a person chose the label, `False` if a run did.
    """

    split: str
    sample: int
    label: int
    verified: bool


class Decisions(NamedTuple):
    """Decisions read from a file.

    Attributes:
        found: decisions that match a sample of the data.
        conflicts: places of all other decisions in the file, by reason.
        held_out: rows of the matching decisions about validation and test samples.
    """

    found: list[Decision]
    conflicts: Mapping[str, Sequence[str]]
    held_out: list[Row]

    def enter(self, ledger: LabelLedger, epoch: int) -> int:
        """Record decisions about training samples that a ledger lacks. Return their number."""
        now, entered = ledger.current_labels.tolist(), 0
        of_person, fixed = ledger.human_verified().tolist(), ledger.fixed().tolist()
        for verified, record in ((True, ledger.decide), (False, ledger.keep)):
            there = of_person if verified else fixed
            new = [
                (sample, label)
                for split, sample, label, by_person in self.found
                if split == "train" and by_person == verified
                if not (there[sample] and now[sample] == label)
            ]
            record(*torch.tensor(new, dtype=torch.int64).reshape(-1, 2).unbind(1), epoch=epoch)
            entered += len(new)
        return entered

    def apply(self, parts: Mapping[str, LabeledImages]) -> None:
        """Apply the decisions of a person to the labels of validation and test samples."""
        for split, sample, label, verified in self.found:
            if split != "train" and verified:
                parts[split].labels[sample] = label

    def check_includes(self, earlier: "Decisions", option: str, path: Path) -> None:
        """Raise a UsageError if earlier decisions, those of a file `path`, are missing."""
        missing = {d[:2] for d in earlier.found} - {d[:2] for d in self.found}
        if missing:
            split, sample = min(missing)
            raise UsageError(
                f"{option}: lacks {len(missing)} of the decisions of {path}, such as that about "
                f"sample {sample} of {split}; append new rows to that file, and correct earlier "
                "decisions in their rows"
            )

    def check_any(self, option: str) -> None:
        """Raise a UsageError if no decision fits the data."""
        if self.conflicts and not self.found:
            raise UsageError("\n".join([f"{option}: no decision fits", *listing(self.conflicts)]))

    def describe(self) -> str:
        """Return the number of decisions, in total and by split."""
        counts = Counter(decision.split for decision in self.found)
        of_splits = ", ".join(f"{count} of {name}" for name, count in counts.items())
        return f"{len(self.found)} decisions" + (f" ({of_splits})" if of_splits else "")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to a CSV file with a header."""
    write_table(path, Row._fields, rows)


def rows_of(ledger: LabelLedger, data: LabeledImages, classes: tuple[str, ...]) -> Iterator[Row]:
    """Yield a row for every changed or fixed label.

    The decision is "accept" if a person verified the label, else "relabel".
    """
    before, now, verified = ledger.original_labels, ledger.current_labels, ledger.human_verified()
    for i in ((now != before) | ledger.fixed()).nonzero()[:, 0].tolist():
        label, chosen = classes[int(before[i])], classes[int(now[i])]
        decision = ACCEPT if verified[i] else RELABEL
        yield Row(i, "train", data.source(i), label, chosen, decision, data.content(i))


def check_undecided(path: Path) -> None:
    """Raise a UsageError if the file exists and holds decisions, which would be overwritten."""
    if not path.is_file():
        return
    with refusing(f"{path}: give another --out, or move it"):
        rows = _read_rows(path)
    decided = sum(bool(row["decision"]) for _, row in rows)
    if decided:
        raise UsageError(f"{path}: holds {decided} decisions; give another --out, or move it")


def read_decisions(
    path: Path, parts: Mapping[str, LabeledImages], classes: Sequence[str]
) -> Decisions:
    """Read a file of decisions by a person or an earlier run.

    Images are identified by their pixels, and equal images by the end of their paths. Files may
    therefore be added, removed or moved, and splits may differ. A decision is a conflict if its
    image is missing or has changed, or if its label has changed in the meantime.

    Args:
        path: file of decisions.
        parts: images by split.
        classes: class names in label order.

    Raises:
        UsageError: the file is not readable, or holds no decision or an invalid one.
    """
    option = f"--labels {path}"
    with refusing(option):
        rows = _read_rows(path)
    problems = Problems()
    by_content: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, part in parts.items():
        for sample in range(len(part)):
            by_content[part.content(sample)].append((name, sample))
    found: dict[tuple[str, int], tuple[Decision, Row, str, int]] = {}
    conflicts: dict[str, list[str]] = defaultdict(list)
    for line, row in rows:
        if None in row or None in row.values():
            problems.add("row with more or fewer columns than the header", f"line {line}")
            continue
        if row["decision"] == "":
            continue
        place, chosen = _find(row, parts, by_content), _chosen(row, classes)
        if chosen is None and (isinstance(place, tuple) or _word(row) not in _WORDS):
            what = f"line {line}: {row['decision']!r}, suggested {row['suggested']!r}"
            problems.add(f"decision that is none of {ACCEPT}, {REJECT}, to CLASS of the data", what)
            continue
        where = f"line {line}: {row['source'] or row['content']}"
        if isinstance(place, str) or chosen is None:
            conflicts[str(place)].append(where)
            continue
        source = parts[place[0]].source(place[1])
        now = classes[int(parts[place[0]].labels[place[1]])]
        if now not in (row["label"], classes[chosen]):
            conflicts["label that is another one now"].append(where)
            continue
        decision = Decision(*place, chosen, row["decision"] != RELABEL)
        word = ACCEPT if decision.verified else RELABEL
        kept = Row(place[1], place[0], source, row["label"], classes[chosen], word, row["content"])
        earlier = found.get(place)
        if earlier is None or earlier[0] == decision:
            found[place] = decision, kept, row["source"], line
        elif earlier[2] == row["source"]:
            problems.add("image decided twice, differently", f"line {earlier[3]} and {where}")
        else:  # one of two equal images is missing
            if _agreement(row["source"], source) > _agreement(earlier[2], source):
                found[place] = decision, kept, row["source"], line
            conflicts["equal image that is not there any more"].append(where)
    problems.raise_if_any(option)
    if rows and not found and not conflicts:
        raise UsageError(f"{option}: no row holds a decision")
    held_out = [row for decision, row, *_ in found.values() if decision.split != "train"]
    return Decisions([decision for decision, *_ in found.values()], conflicts, held_out)


def _word(row: Mapping[str | None, Any]) -> str:
    return TO if row["decision"].startswith(TO) else row["decision"]


def _agreement(*sources: str) -> int:
    """Return the number of trailing parts that two paths share. They may be Windows paths."""
    ends = (source.replace("\\", "/").split("/")[::-1] for source in sources)
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))])


def _chosen(row: Mapping[str | None, Any], classes: Sequence[str]) -> int | None:
    words = {ACCEPT: row["suggested"], RELABEL: row["suggested"], REJECT: row["label"]}
    words |= {f"{TO}{name}": name for name in classes}
    name = words.get(row["decision"])
    return classes.index(name) if name in classes else None


def _find(
    row: Mapping[str | None, Any],
    parts: Mapping[str, LabeledImages],
    by_content: Mapping[str, Sequence[tuple[str, int]]],
) -> tuple[str, int] | str:
    """Return the split and id of a row's image, or the reason why there is no match."""
    places, source = by_content.get(row["content"], []), row["source"]
    if not places:
        return "image that is not there any more, or has changed"
    shared = [_agreement(source, parts[name].source(sample)) for name, sample in places]
    nearest = [place for place, n in zip(places, shared, strict=True) if n == max(shared)]
    if len(nearest) > 1 and not source and str(row["sample"]).isdecimal():
        nearest = [place for place in nearest if place == (row["split"], int(row["sample"]))]
    return nearest[0] if len(nearest) == 1 else "one of several equal images, unclear which"


def _read_rows(path: Path) -> list[tuple[int, dict[str | None, Any]]]:
    """Return the line number of each row, and the row as a dict by column.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    table = read_table(path, _NEEDED)
    # A file that was appended may repeat the header.
    rows = [(line, row) for line, row in table if [*row] != [*row.values()]]
    for _, row in rows:
        if isinstance(row["decision"], str):
            row["decision"] = row["decision"].strip()
            # Spreadsheets capitalise words.
            word, space, name = row["decision"].partition(" ")
            if f"{word.lower()}{space}" in _WORDS:
                row["decision"] = f"{word.lower()}{space}{name}"
    return rows
