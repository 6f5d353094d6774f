"""The file in which somebody accepts or rejects suggested labels.

`unmuddle audit` writes it, a person fills in its last column, `unmuddle train --labels` reads it;
or a run writes it, of what it relabeled.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.data.files import Problems
from unmuddle.recipe.errors import UsageError
from unmuddle.uerm import LabelLedger

ACCEPT, REJECT = "accept", "reject"
KEEP = "keep"  # the suggested label, which a run chose and nobody verified


class Row(NamedTuple):
    """One label in question.

    Attributes:
        sample: its id.
        source: file of the image, if any.
        label: name of the class as given.
        suggested: name of another class.
        decision: "accept" the suggested label, "reject" it, "keep" it unverified, or "" for neither
            yet.
    """

    sample: int
    source: str
    label: str
    suggested: str
    decision: str


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
        decision = ACCEPT if verified[i] else KEEP
        yield Row(i, data.source(i), classes[int(before[i])], classes[int(now[i])], decision)


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


class Decisions(NamedTuple):
    """Decisions of a file about m samples.

    Attributes:
        ids: `(m,)` samples.
        labels: `(m,)` labels that they have.
        verified: `(m,)` True where a person chose the label, False where a run did.
    """

    ids: Tensor
    labels: Tensor
    verified: Tensor

    def enter(self, ledger: LabelLedger) -> None:
        """Record them."""
        ids, labels, verified = self
        ledger.decide(ids[verified], labels[verified])
        ledger.keep(ids[~verified], labels[~verified])


def read_decisions(path: Path, data: LabeledImages, classes: tuple[str, ...]) -> Decisions:
    """Read the labels that a person accepted or rejected, or that an earlier run chose.

    Raises:
        UsageError: not such a file, or not of this data; lists everything that does not fit.
    """
    try:
        rows = _read_rows(path)
    except ValueError as error:
        raise UsageError(f"--labels {path}: {error}") from error

    problems, decided = Problems(), dict[int, tuple[int, bool]]()
    for number, row in rows:
        if row["decision"] == "":
            continue
        problem = _problem(row, data, classes)
        if problem:
            column, kind = problem
            problems.add(kind, f"line {number}: {column} {row[column]!r}")
        else:
            sample = int(row["sample"])
            if sample in decided:
                problems.add("decided twice", f"line {number}: sample {sample}")
            chosen = row["label"] if row["decision"] == REJECT else row["suggested"]
            decided[sample] = classes.index(chosen), row["decision"] != KEEP
    problems.raise_if_any(f"--labels {path}")
    if rows and not decided:
        raise UsageError(f"--labels {path}: no row says accept, reject or keep")
    labels = torch.tensor([label for label, _ in decided.values()], dtype=torch.int64)
    verified = torch.tensor([by_person for _, by_person in decided.values()], dtype=torch.bool)
    return Decisions(torch.tensor(list(decided), dtype=torch.int64), labels, verified)


def _read_rows(path: Path) -> list[tuple[int, dict[str | None, Any]]]:
    """Rows by column, each with the number of its line.

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
        for _, row in rows:  # spreadsheets capitalise words
            if isinstance(row.get("decision"), str):
                row["decision"] = row["decision"].strip().lower()
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"not readable: {error}") from error
    missing = [name for name in Row._fields if name not in found]
    if missing:
        raise ValueError(
            f"lacks the columns {', '.join(missing)}; "
            f"its first row holds {', '.join(found) or 'nothing'}"
        )
    return rows


def _problem(
    row: dict[str | None, Any], data: LabeledImages, classes: tuple[str, ...]
) -> tuple[str, str] | None:
    """The column that does not fit, and why."""
    if None in row or None in row.values():
        return "sample", "row of another length than the header"
    own, number = "give the run's own --data, --noise and --seed", row["sample"]
    if not number.isdecimal() or len(number) > 18 or int(number) >= len(data):
        return "sample", f"sample that is not a number below {len(data)}"
    sample = int(number)
    # By its name: the data may have moved.
    if Path(row["source"]).name != Path(data.source(sample)).name:
        return "source", f"source that is another image in the data; {own}"
    if row["label"] != classes[int(data.labels[sample])]:
        return "label", f"label that is another one here; {own}"
    if row["suggested"] not in classes:
        return "suggested", f"suggested label that is none of {', '.join(classes)}"
    if row["decision"] not in (ACCEPT, REJECT, KEEP):
        return "decision", f"decision that is none of {ACCEPT}, {REJECT}, {KEEP} or nothing"
    return None
