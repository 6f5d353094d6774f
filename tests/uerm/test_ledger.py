"""The ledger: every change recorded, replayable, reversible; nothing half-done."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmuddle import LabelLedger

N, K = 6, 3


def new_ledger() -> LabelLedger:
    return LabelLedger(torch.arange(N) % K, K)


def apply(ledger: LabelLedger, changes: dict[int, int], epoch: int, rule: str = "test") -> None:
    ids, labels = torch.tensor(list(changes)), torch.tensor(list(changes.values()))
    ledger.record(ids, labels, epoch=epoch, rule=rule)


def test_an_event_holds_everything() -> None:
    ledger = new_ledger()
    ledger.record(
        torch.tensor([4]), torch.tensor([2]), epoch=7, rule="why",
        uncertainty=torch.tensor([0.5]), margin=torch.tensor([0.25]), threshold=0.125,
    )  # fmt: skip
    assert [tuple(event) for event in ledger.events()] == [(0, 4, 7, 1, 2, 0.5, 0.25, 0.125, "why")]


def test_revert_by_sample_event_and_epoch() -> None:
    ledger = new_ledger()  # 0 1 2 0 1 2
    apply(ledger, {0: 1, 1: 2}, epoch=1)
    apply(ledger, {0: 2, 5: 0}, epoch=2)
    ledger.revert(event=2)  # sample 0 back to what it was before event 2
    assert ledger.current_labels.tolist() == [1, 2, 2, 0, 1, 0]
    ledger.revert(epoch=2)  # sample 5; sample 0 is back already
    assert ledger.current_labels.tolist() == [1, 2, 2, 0, 1, 2]
    ledger.revert(ids=torch.tensor([0, 1, 3]))
    assert torch.equal(ledger.current_labels, ledger.original_labels)
    assert [event.rule for event in ledger.events()] == ["test"] * 4 + ["revert"] * 5
    assert ledger.fixed().tolist() == [True, True, False, True, False, True]


def test_reverting_an_epoch_that_changed_a_sample_twice_goes_back_before_both() -> None:
    ledger = new_ledger()
    apply(ledger, {0: 1}, epoch=3)
    apply(ledger, {0: 2}, epoch=3)
    ledger.revert(epoch=3)
    assert ledger.current_labels[0] == 0


def test_reverting_an_epoch_leaves_what_somebody_chose() -> None:
    ledger = new_ledger()  # 0 1 2 0 1 2
    apply(ledger, {0: 1}, epoch=2)
    apply(ledger, {1: 2, 2: 0, 3: 2}, epoch=4)
    ledger.revert(ids=[0])
    ledger.decide([1, 4], [0, 2])
    chosen = ledger.current_labels
    ledger.revert(epoch=4)
    assert ledger.current_labels.tolist() == [0, 0, 2, 0, 2, 2]
    assert torch.equal(ledger.current_labels[[0, 1, 4]], chosen[[0, 1, 4]])
    assert [e.sample for e in ledger.events(since=7)] == [2, 3]


change = st.tuples(st.integers(0, N - 1), st.integers(0, K - 1))
history = st.lists(st.lists(change, max_size=4, unique_by=lambda c: c[0]), max_size=6)


@given(history=history, reverted=st.integers(1, 6))
def test_replay_gives_the_current_labels_and_reverting_all_the_original(
    history: list[list[tuple[int, int]]], reverted: int
) -> None:
    ledger = new_ledger()
    for epoch, changes in enumerate(history, start=1):
        ids = torch.tensor([c[0] for c in changes], dtype=torch.int64)
        ledger.record(ids, torch.tensor([c[1] for c in changes]), epoch=epoch, rule="test")
    ledger.revert(epoch=reverted)
    assert torch.equal(ledger.replay(), ledger.current_labels)
    ledger.revert(ids=torch.arange(N))
    assert torch.equal(ledger.current_labels, ledger.original_labels)
    assert torch.equal(ledger.replay(), ledger.original_labels)


def test_state_dict_round_trip_into_a_fresh_ledger() -> None:
    ledger = new_ledger()
    apply(ledger, {0: 1, 1: 2}, epoch=1, rule="first rule")
    apply(ledger, {2: 0}, epoch=2, rule="zweite Regel ü")
    state = ledger.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = new_ledger()
    other.load_state_dict(state)
    # Unknown scores are NaN, so compare what is printed.
    assert str(other.events()) == str(ledger.events())
    assert torch.equal(other.current_labels, ledger.current_labels)
    apply(other, {3: 1}, epoch=3, rule="first rule")
    assert other.events()[-1].rule == "first rule"
    assert len(ledger.events()) == 3


def test_a_state_taken_before_keeps_labels_that_belong_to_its_events() -> None:
    ledger = new_ledger()
    state = ledger.state_dict()
    apply(ledger, {0: 1}, epoch=1)
    other = new_ledger()
    other.load_state_dict(state)
    assert torch.equal(other.current_labels, other.original_labels)


@pytest.mark.parametrize("name", ["current_labels", "event_integers"])
def test_a_state_whose_events_do_not_lead_to_its_labels_is_refused(name: str) -> None:
    ledger, other = new_ledger(), new_ledger()
    apply(ledger, {0: 1, 5: 0}, epoch=1)
    for broken in (new_ledger().state_dict()[name], None):
        with pytest.raises(RuntimeError, match="current_labels"):
            other.load_state_dict(ledger.state_dict() | {name: broken})
    beyond = ledger.state_dict()["event_integers"] * 9
    with pytest.raises(RuntimeError, match="not what the events make of the original labels"):
        other.load_state_dict(ledger.state_dict() | {"event_integers": beyond})
    assert not other.events()


def test_state_of_other_labels_is_refused() -> None:
    other = LabelLedger(torch.arange(N).flip(0) % K, K)
    with pytest.raises(RuntimeError, match="original_labels: 4 of 6 differ"):
        other.load_state_dict(new_ledger().state_dict())


def test_state_of_more_classes_is_refused() -> None:
    more = LabelLedger(torch.arange(N) % K, K + 1)
    apply(more, {0: K}, epoch=1)
    with pytest.raises(RuntimeError, match="a ledger of more than 3 classes"):
        new_ledger().load_state_dict(more.state_dict())


def test_ids_may_be_a_list() -> None:
    ledger = new_ledger()
    ledger.record([1], [2], epoch=1, rule="test")
    ledger.revert(ids=[1])
    assert torch.equal(ledger.current_labels, ledger.original_labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_narrow_integers_count_as_far_as_they_reach(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 5, 120], dtype=dtype)
    assert LabelLedger(labels, 70_000).current_labels.tolist() == [0, 5, 120]
    assert LabelLedger(torch.tensor([0, 255], dtype=torch.uint8), 256).current_labels.max() == 255


def test_a_ledger_written_in_inference_mode_goes_on_outside() -> None:
    ledger = new_ledger()
    with torch.inference_mode():
        apply(ledger, {0: 1}, epoch=1)
    ledger.load_state_dict(new_ledger().state_dict())
    assert torch.equal(ledger.current_labels, ledger.original_labels)


def test_exports(tmp_path: Path) -> None:
    ledger = new_ledger()
    apply(ledger, {0: 1, 4: 2}, epoch=1)
    ledger.to_csv(tmp_path / "ledger.csv")
    ledger.to_jsonl(tmp_path / "ledger.jsonl")
    with (tmp_path / "ledger.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["sample"], r["old"], r["new"], r["rule"]) for r in rows] == [
        ("0", "0", "1", "test"),
        ("4", "1", "2", "test"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["event"], line["margin"], line["new"]) for line in lines] == [
        (0, None, 1),
        (1, None, 2),
    ]


def test_an_infinite_score_is_valid_json(tmp_path: Path) -> None:
    ledger = new_ledger()
    score = torch.tensor([torch.inf])
    ledger.record(torch.tensor([0]), torch.tensor([1]), epoch=1, rule="sure", margin=score)
    ledger.to_jsonl(tmp_path / "ledger.jsonl")
    assert "Infinity" not in (tmp_path / "ledger.jsonl").read_text()


def test_compare_by_hand() -> None:
    ledger = LabelLedger(torch.tensor([0, 1, 2, 0]), 3)
    # Truth 0 0 2 1: two wrong. Sample 1 is repaired, sample 2 broken.
    apply(ledger, {1: 0, 2: 1}, epoch=1)
    found = ledger.compare(torch.tensor([0, 0, 2, 1]))
    assert found[:5] == (0.5, 0.5, 2, 0.5, 0.5)
    assert found.confusion.tolist() == [[2, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_compare_without_changes_has_no_precision() -> None:
    found = new_ledger().compare(torch.arange(N) % K)
    assert found.right_after == 1
    assert found.precision != found.precision
    assert found.recall != found.recall


def test_names_are_no_labels() -> None:
    for names in (["anger", "fear"], np.array(["anger", "fear"]), None):
        with pytest.raises(ValueError, match="labels: expected a vector of integers, got"):
            LabelLedger(names, 2)


@pytest.mark.parametrize(
    ("message", "ids", "labels", "rule"),
    [
        ("ids: expected integers from 0 to 5, got 6", [0, 6], [1, 1], "r"),
        ("ids: expected integers from 0 to 5, got -1", [-1], [1], "r"),
        ("ids: expected distinct ids", [2, 2], [1, 0], "r"),
        ("labels: expected integers from 0 to 2, got 3", [0, 1], [1, 3], "r"),
        (r"labels: expected shape \(m,\) = \(2,\), got \(1,\)", [0, 1], [1], "r"),
        ("rule: expected a name of one line", [0], [1], "a\nb"),
        ("rule: expected a name of one line, not of", [0], [1], "revert"),
        ("ids: expected a vector of integers, got torch.float32", [0.5], [1], "r"),
        ("ids: expected a vector of integers, got torch.bool", [True], [1], "r"),
        ("labels: expected a vector of integers, got torch.float32", [0], [1.5], "r"),
    ],
)
def test_wrong_records_are_named_and_change_nothing(
    message: str, ids: list[int], labels: list[int], rule: str
) -> None:
    ledger = new_ledger()
    before = {name: value.clone() for name, value in ledger.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        ledger.record(torch.tensor(ids), torch.tensor(labels), epoch=1, rule=rule)
    assert all(torch.equal(value, before[name]) for name, value in ledger.state_dict().items())


def test_scores_of_another_shape_are_named_and_rules_are_names() -> None:
    ledger = new_ledger()
    ids, labels = torch.tensor([0, 1]), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"margin: expected shape \(m,\) = \(2,\), got \(3,\)"):
        ledger.record(ids, labels, epoch=1, rule="r", margin=torch.zeros(3))
    with pytest.raises(ValueError, match="rule: expected a name of one line, .* got 3"):
        ledger.record(ids, labels, epoch=1, rule=3)
    assert not ledger.events()


def test_other_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="labels: expected integers from 0 to 2, got 5"):
        LabelLedger(torch.tensor([0, 5]), 3)
    with pytest.raises(ValueError, match="exactly one of ids, event, epoch"):
        new_ledger().revert()
    with pytest.raises(ValueError, match="event: expected 0 <= event < 0, got 0"):
        new_ledger().revert(event=0)
    for value in (-1, 1.5, "1", None):
        expected = f"expected an integer of at least 0, got {value!r}"
        with pytest.raises(ValueError, match=f"since: {expected}"):
            new_ledger().events(since=value)
        with pytest.raises(ValueError, match=f"epoch: {expected}"):
            new_ledger().record(torch.tensor([0]), torch.tensor([1]), epoch=value, rule="r")
        if value is not None:
            with pytest.raises(ValueError, match=f"event: {expected}"):
                new_ledger().revert(event=value)
            with pytest.raises(ValueError, match=f"epoch: {expected}"):
                new_ledger().revert(epoch=value)
    with pytest.raises(ValueError, match=r"true_labels: expected shape \(n,\) = \(6,\)"):
        new_ledger().compare(torch.zeros(5, dtype=torch.int64))
