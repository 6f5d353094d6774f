"""Ledger histories of any shape, against a list of what was done."""

import io

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from unmuddle.uerm import LabelLedger

SAMPLES, CLASSES = 6, 3
GIVEN = [0, 1, 2, 0, 1, 2]
CHANGES = st.dictionaries(st.integers(0, SAMPLES - 1), st.integers(0, CLASSES - 1), max_size=4)
RULES = ("first", "second rule", "dritte Regel: ü")


class Histories(RuleBasedStateMachine):
    """The model: the labels, and a list of (sample, epoch, old, new, rule)."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = LabelLedger(torch.tensor(GIVEN), CLASSES)
        self.labels = list(GIVEN)
        self.events: list[tuple[int, int, int, int, str]] = []
        self.saved = [(self.state(), list(GIVEN), [])]

    def state(self) -> bytes:
        with io.BytesIO() as file:
            torch.save(self.ledger.state_dict(), file)
            return file.getvalue()

    def note(self, changes: dict[int, int], epoch: int, name: str) -> None:
        for sample, new in changes.items():
            self.events.append((sample, epoch, self.labels[sample], new, name))
            self.labels[sample] = new

    def last_epoch(self) -> int:
        return self.events[-1][1] if self.events else 0

    @rule(changes=CHANGES, epoch=st.integers(1, 4), name=st.sampled_from(RULES))
    def record(self, changes: dict[int, int], epoch: int, name: str) -> None:
        ids = torch.tensor(list(changes), dtype=torch.int64)
        labels = torch.tensor(list(changes.values()), dtype=torch.int64)
        self.ledger.record(ids, labels, epoch=epoch, rule=name, margin=ids.double() / 7)
        self.note(changes, epoch, name)

    @rule(changes=CHANGES)
    def decide(self, changes: dict[int, int]) -> None:
        epoch = self.last_epoch()
        self.ledger.decide(list(changes), list(changes.values()))
        self.note(changes, epoch, "decide")

    @rule(ids=st.sets(st.integers(0, SAMPLES - 1)))
    def revert_samples(self, ids: set[int]) -> None:
        epoch = self.last_epoch()
        self.ledger.revert(ids=sorted(ids))
        self.note({i: GIVEN[i] for i in sorted(ids)}, epoch, "revert")

    @rule(epoch=st.integers(1, 4))
    def revert_epoch(self, epoch: int) -> None:
        before: dict[int, int] = {}
        by_hand = ("revert", "decide")
        last_rule = {sample: name for sample, _, _, _, name in self.events}
        for sample, when, old, _, name in self.events:
            if when == epoch and name not in by_hand and last_rule[sample] not in by_hand:
                before.setdefault(sample, old)
        last = self.last_epoch()
        self.ledger.revert(epoch=epoch)
        self.note(dict(sorted(before.items())), last, "revert")

    @precondition(lambda self: self.events)
    @rule(data=st.data())
    def revert_event(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.events) - 1))
        sample, _, old, _, _ = self.events[number]
        last = self.last_epoch()
        self.ledger.revert(event=number)
        self.note({sample: old}, last, "revert")

    @rule()
    def save(self) -> None:
        self.saved.append((self.state(), list(self.labels), list(self.events)))

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        state, labels, events = data.draw(st.sampled_from(self.saved))
        self.ledger = LabelLedger(torch.tensor(GIVEN), CLASSES)
        self.ledger.load_state_dict(torch.load(io.BytesIO(state)))
        self.labels, self.events = list(labels), list(events)

    @invariant()
    def ledger_is_the_model(self) -> None:
        assert self.ledger.current_labels.tolist() == self.labels
        assert self.ledger.original_labels.tolist() == GIVEN
        found = [(e.sample, e.epoch, e.old, e.new, e.rule) for e in self.ledger.events()]
        assert found == self.events

    @invariant()
    def replaying_gives_the_labels(self) -> None:
        assert torch.equal(self.ledger.replay(), self.ledger.current_labels)

    @invariant()
    def pinned_is_whose_last_event_was_by_hand(self) -> None:
        last = {sample: name for sample, _, _, _, name in self.events}
        expected = [last.get(i) in ("revert", "decide") for i in range(SAMPLES)]
        assert self.ledger.fixed().tolist() == expected

    @invariant()
    def flow_counts_every_sample_once(self) -> None:
        expected = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
        for given_as, label in zip(GIVEN, self.labels, strict=True):
            expected[given_as, label] += 1
        assert torch.equal(self.ledger.flow(), expected)

    def teardown(self) -> None:
        self.ledger.revert(ids=torch.arange(SAMPLES))
        assert torch.equal(self.ledger.current_labels, self.ledger.original_labels)


TestHistories = Histories.TestCase
