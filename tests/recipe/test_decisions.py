"""Decisions find their images again, whatever became of the folder."""

from pathlib import Path

import pytest
import torch

from unmuddle.recipe.data import LabeledImages, Splits
from unmuddle.recipe.decisions import Decision, Decisions, Row, read_decisions, rows_of, write_rows
from unmuddle.recipe.errors import UsageError
from unmuddle.uerm import LabelLedger

CLASSES = ("calm", "glad", "sad")
LABELS = {"a": 0, "b": 1, "c": 0, "d": 2, "e": 1}


def splits(names: str, root: str = "faces", labels: dict[str, int] = LABELS) -> Splits:
    """Images with a content of their own; "abc|d|e" are the names of each split."""

    def part(letters: str) -> LabeledImages:
        shades = torch.tensor([ord(name) for name in letters], dtype=torch.uint8)
        return LabeledImages(
            shades[:, None, None, None].expand(-1, 3, 4, 4).contiguous(),
            torch.tensor([labels[name] for name in letters], dtype=torch.int64),
            sources=[f"{root}/{CLASSES[labels[name]]}/{name}.png" for name in letters],
        )

    return Splits(*map(part, names.split("|")), CLASSES, 4)


DATA = splits("abc|d|e")
ROWS = [
    Row(i, name, part.source(i), CLASSES[int(part.labels[i])], suggested, decision, part.content(i))
    for name, i, suggested, decision in (
        ("train", 0, "glad", "accept"), ("train", 1, "calm", "reject"), ("train", 2, "glad", ""),
        ("val", 0, "glad", "to calm"), ("test", 0, "calm", "relabel"),
    )
    for part in (DATA.parts()[name],)
]  # fmt: skip
EXPECTED = {("a", "glad", True), ("b", "glad", True), ("d", "calm", True), ("e", "calm", False)}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    write_rows(tmp_path / "labels.csv", ROWS)
    return tmp_path / "labels.csv"


def read(path: Path, data: Splits) -> Decisions:
    return read_decisions(path, data.parts(), data.classes)


def names(path: Path, data: Splits) -> set[tuple[str, str, bool]]:
    """Decisions by the name of the image."""
    return {
        (Path(data.parts()[d.split].source(d.sample)).stem, CLASSES[d.label], d.verified)
        for d in read(path, data).found
    }


@pytest.mark.parametrize("order", ["abc|d|e", "eda|c|b", "xyzdecba|v|w"])
@pytest.mark.parametrize("root", ["faces", "/moved/to/another place"])
def test_decisions_hold_in_other_splits_orders_and_places(
    order: str, root: str, labels: Path
) -> None:
    data = splits(order, root, LABELS | dict.fromkeys("vwxyz", 2))
    assert names(labels, data) == EXPECTED
    assert not read(labels, data).conflicts


def test_what_is_gone_changed_or_relabeled_is_named_and_the_rest_is_used(labels: Path) -> None:
    data = splits("ac|d|d", labels=LABELS | {"a": 2})  # b, e are gone; d is there twice
    found = read(labels, data)
    assert found.found == []
    assert {kind.split(";")[0]: len(places) for kind, places in found.conflicts.items()} == {
        "label that is another one now": 1,
        "image that is not there any more, or has changed": 2,
        "one of several equal images, unclear which": 1,
    }
    assert (
        found.conflicts["image that is not there any more, or has changed"][0]
        == "line 3: faces/glad/b.png"
    )
    with pytest.raises(
        UsageError, match="FILE: no decision fits\n.*\n    line 2: faces/calm/a.png"
    ):
        found.check_any("FILE")

    data = splits("abc|d|e")
    data.train.images[1] += 1
    data.train = LabeledImages(data.train.images, data.train.labels, sources=data.train.sources)
    assert names(labels, data) == EXPECTED - {("b", "glad", True)}
    assert [*read(labels, data).conflicts] == ["image that is not there any more, or has changed"]


def test_equal_images_are_told_apart_by_the_end_of_their_path(labels: Path) -> None:
    data = splits("aab|d|e", root="elsewhere")
    data.train.sources = ["elsewhere/calm/copy.png", "elsewhere/calm/a.png", "elsewhere/glad/b.png"]
    assert ("a", "glad", True) in names(labels, data)


def test_equal_images_without_files_are_told_apart_by_their_number(labels: Path) -> None:
    data = splits("aab|d|e")
    data.train.sources = None
    write_rows(labels, [ROWS[0]._replace(source="", sample=1)])
    assert [d[:2] for d in read(labels, data).found] == [("train", 1)]


def test_of_two_equal_images_decided_differently_one_may_go(labels: Path) -> None:
    other = ROWS[0]._replace(source="faces/calm/copy.png", decision="reject")
    for rows in ([ROWS[0], other], [other, ROWS[0]]):
        write_rows(labels, rows)
        assert names(labels, DATA) == {("a", "glad", True)}
        assert [*read(labels, DATA).conflicts] == ["equal image that is not there any more"]


def test_paths_of_another_system_are_compared(labels: Path) -> None:
    data = splits("aab|d|e")
    data.train.sources = ["x/calm/copy.png", "x/calm/a.png", "x/glad/b.png"]
    write_rows(labels, [ROWS[0]._replace(source=r"C:\faces\calm\a.png")])
    assert [d[:2] for d in read(labels, data).found] == [("train", 1)]


def test_a_label_that_is_repaired_already_is_no_conflict(labels: Path) -> None:
    data = splits("abc|d|e", labels=LABELS | {"a": 1, "d": 0})
    assert names(labels, data) == EXPECTED


def test_decisions_reach_the_ledger_and_the_other_splits(labels: Path) -> None:
    data = splits("abc|d|e")
    decisions = read(labels, data)
    ledger = LabelLedger(data.train.labels, 3)
    assert decisions.enter(ledger, 0) == 2
    assert decisions.enter(ledger, 0) == 0  # it has them
    assert len(ledger.events()) == 2
    decisions.apply(data.parts())
    assert ledger.current_labels.tolist() == [1, 1, 0]
    assert ledger.human_verified().tolist() == [True, True, False]
    assert data.train.labels.tolist() == [0, 1, 0]  # the ledger changes them
    assert (data.val.labels.tolist(), data.test.labels.tolist()) == ([0], [1])  # one is unverified
    write_rows(labels, [*rows_of(ledger, data.train, CLASSES), *decisions.held_out])
    assert names(labels, splits("abc|d|e")) == EXPECTED  # relabeled.csv of the run
    assert decisions.describe() == "4 decisions (2 of train, 1 of val, 1 of test)"


def test_relabeled_and_chosen_labels_are_read_back(tmp_path: Path) -> None:
    data = splits("abc|d|e")
    ledger = LabelLedger(data.train.labels, 3)
    ledger.record(torch.tensor([0]), torch.tensor([1]), epoch=1, rule="bayes")
    ledger.decide(torch.tensor([1]), torch.tensor([1]))
    write_rows(tmp_path / "labels.csv", rows_of(ledger, data.train, CLASSES))
    again = LabelLedger(data.train.labels, 3)
    read(tmp_path / "labels.csv", data).enter(again, 0)
    assert torch.equal(again.current_labels, ledger.current_labels)
    assert again.fixed().tolist() == [True, True, False]
    assert again.human_verified().tolist() == [False, True, False]


def test_a_person_confirms_or_changes_what_a_run_chose() -> None:
    ledger = LabelLedger(torch.tensor([0, 0]), 3)
    for label, verified, entered in ((1, False, 1), (1, True, 1), (1, True, 0), (2, True, 1)):
        assert (
            Decisions([Decision("train", 1, label, verified)], {}, []).enter(ledger, 0) == entered
        )
    assert [event.rule for event in ledger.events()] == ["keep", "decide", "decide"]
    assert ledger.current_labels.tolist() == [0, 2]


def test_a_run_that_changed_nothing_leaves_nothing_to_decide(tmp_path: Path) -> None:
    ledger = LabelLedger(DATA.train.labels, 3)
    write_rows(tmp_path / "labels.csv", rows_of(ledger, DATA.train, CLASSES))
    assert read(tmp_path / "labels.csv", DATA) == ([], {}, [])


def test_a_file_may_be_appended_with_its_header(labels: Path) -> None:
    header, *lines = labels.read_text().splitlines()
    labels.write_text("\n".join([header, *lines[:1], header, *lines[1:], ""]))
    assert names(labels, DATA) == EXPECTED


def test_a_spreadsheet_may_separate_by_semicolons_and_capitalise(labels: Path) -> None:
    text = (
        labels.read_text()
        .replace(",", ";")
        .replace("accept", "ACCEPT")
        .replace("reject", " Reject ")
        .replace("to ", "To ")
    )
    labels.write_text("\ufeff" + text, encoding="utf-8")
    assert names(labels, DATA) == EXPECTED


@pytest.mark.parametrize(
    ("message", "row"),
    [
        ("decision that is none of accept, reject, to CLASS of the data: 1\n    line 8: 'yes', suggested", ROWS[0]._replace(decision="yes")),
        ("none of accept, reject, to CLASS of the data: 1\n    line 8: 'to merry'", ROWS[0]._replace(decision="to merry")),
        ("none of accept, reject, to CLASS of the data: 1\n    line 8: 'keep'", ROWS[0]._replace(decision="keep")),
        ("none of accept, reject, to CLASS of the data: 1\n    line 8: 'accept', suggested 'merry'", ROWS[0]._replace(suggested="merry")),
        ("image decided twice, differently: 1\n    line 4 and line 8: faces/glad/b.png", ROWS[1]._replace(decision="accept")),
    ],
)  # fmt: skip
def test_decisions_that_are_not_understood_are_refused(
    message: str, row: Row, tmp_path: Path
) -> None:
    write_rows(tmp_path / "labels.csv", [*ROWS[1:], row])
    header, *lines = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text(
        "\n".join([header, "", "", *lines, ""])
    )  # blank lines count
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "labels.csv", DATA)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("lacks the columns split, content; its first row holds", "sample,source,label,suggested,decision\n"),
        ("not UTF-8, save it as UTF-8", "\xe9\n"),
        ("no row holds a decision", ",".join(Row._fields) + "\n0,train,x,calm,glad,,00\n"),
    ],
)  # fmt: skip
def test_files_that_hold_no_decisions_are_refused(message: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "labels.csv", DATA)


def test_a_row_of_another_length_is_refused(labels: Path) -> None:
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join([*lines, "1,train,x"]))
    with pytest.raises(UsageError, match="more or fewer columns than the header: 1\n    line 7"):
        read(labels, DATA)
