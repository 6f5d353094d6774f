"""`LabelLedger`: the labels as they stand, and every change that led there."""

import csv
import json
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmuddle.uerm.inputs import to_integers, whole
from unmuddle.uerm.records import Comparison, Event

REVERT = "revert"
DECIDE = "decide"
KEEP = "keep"
BY_HAND = (REVERT, DECIDE, KEEP)


class LabelLedger(nn.Module):
    """Current labels of n samples, and an append-only record of every change to them.

    Only `record`, `decide` and `revert` change labels, and each change becomes an event, a revert
    too. Replaying the events over the original labels gives the current ones. All state is tensors
    in `state_dict`, which loads only into a ledger made with the same labels; the data set itself
    is never written to.

    Attributes:
        original_labels: `(n,)` labels as given.
        current_labels: `(n,)` labels as they stand; not to be written to.

    Args:
        labels: `(n,)` integer labels as given.
        num_classes: K; labels are in `[0, K)`.

    Raises:
        ValueError: a shape, label or id is out of range; nothing is recorded then.

    Examples:
        >>> ledger = LabelLedger(torch.tensor([0, 1, 2]), num_classes=3)
        >>> ledger.record(torch.tensor([2]), torch.tensor([0]), epoch=1, rule="by hand")
        >>> ledger.current_labels
        tensor([0, 1, 0])
        >>> ledger.revert(ids=torch.tensor([2]))
        >>> ledger.current_labels, len(ledger.events())
        (tensor([0, 1, 2]), 2)
    """

    original_labels: Tensor
    current_labels: Tensor
    # One row an event: sample, epoch, old, new, index of the rule's name.
    event_integers: Tensor
    # One row an event: uncertainty, margin, threshold.
    event_scores: Tensor
    rule_names: Tensor

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        labels = to_integers("labels", labels, num_classes)
        device = labels.device
        self.register_buffer("original_labels", labels.clone())
        self.register_buffer("current_labels", labels.clone())
        self.register_buffer("event_integers", torch.zeros(0, 5, dtype=torch.int64, device=device))
        self.register_buffer("event_scores", torch.zeros(0, 3, dtype=torch.float64, device=device))
        self.register_buffer("rule_names", _encode(list(BY_HAND)).to(device))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.original_labels)

    def record(
        self,
        ids: Tensor,
        labels: Tensor,
        *,
        epoch: int,
        rule: str,
        uncertainty: Tensor | None = None,
        margin: Tensor | None = None,
        threshold: Tensor | float = float("nan"),
    ) -> None:
        """Give samples `ids` `(m,)` new `labels` `(m,)`, one event each.

        Args:
            ids: distinct sample ids.
            labels: their new labels.
            epoch: when.
            rule: why; a name of one line, other than "revert", "decide" and "keep".
            uncertainty: `(m,)` of the old label.
            margin: `(m,)` by which the rule preferred the new label.
            threshold: `(m,)` or one number; the bound that the margin passed.
        """
        if not isinstance(rule, str) or not rule or "\n" in rule or rule in BY_HAND:
            raise ValueError(f"rule: expected a name of one line, not of {BY_HAND}, got {rule!r}")
        self._append(ids, labels, whole("epoch", epoch), rule, (uncertainty, margin, threshold))

    @torch.inference_mode(False)
    def _append(
        self,
        ids: Tensor,
        labels: Tensor,
        epoch: int,
        rule: str,
        scores: tuple[Tensor | float | None, ...] = (None, None, None),
    ) -> None:
        ids = self._distinct(ids)
        labels = to_integers("labels", labels, self.num_classes).to(ids.device)
        if labels.shape != ids.shape:
            raise ValueError(
                f"labels: expected shape (m,) = {tuple(ids.shape)}, got {tuple(labels.shape)}"
            )
        columns = [
            torch.as_tensor(
                torch.nan if score is None else score,
                dtype=torch.float64,
                device=self.event_scores.device,
            )
            for score in scores
        ]
        for name, column in zip(("uncertainty", "margin", "threshold"), columns, strict=True):
            if column.ndim and column.shape != ids.shape:
                raise ValueError(
                    f"{name}: expected shape (m,) = {tuple(ids.shape)}, got {tuple(column.shape)}"
                )
        score_rows = torch.stack([column.expand(ids.shape) for column in columns], 1)
        names = self._rules()
        code = names.index(rule) if rule in names else len(names)
        constant, old = torch.ones_like(ids), self.current_labels[ids]
        integers = torch.stack([ids, epoch * constant, old, labels, code * constant], 1)

        if code == len(names):
            self.rule_names = _encode([*names, rule]).to(self.rule_names.device)
        self.event_integers = torch.cat([self.event_integers, integers])
        self.event_scores = torch.cat([self.event_scores, score_rows])
        # Not in place: a state dict taken before keeps labels that belong to its events.
        self.current_labels = self.current_labels.index_copy(0, ids, labels)

    def decide(self, ids: Tensor, labels: Tensor) -> None:
        """Record that a person verified: samples `ids` `(m,)` have `labels` `(m,)`.

        One event of rule "decide" each, in the epoch of the last event, also where a label is
        confirmed. `UERM` leaves these samples alone from then on, and learns from them how far to
        trust the other labels.
        """
        self._append(ids, labels, self._last_epoch(), DECIDE)

    def keep(self, ids: Tensor, labels: Tensor) -> None:
        """Fix `labels` `(m,)` of samples `ids` `(m,)` that nobody verified, as of an earlier run.

        As `decide`, with the rule "keep": `UERM` leaves these samples alone, and learns nothing
        from them.
        """
        self._append(ids, labels, self._last_epoch(), KEEP)

    def revert(
        self, *, ids: Tensor | None = None, event: int | None = None, epoch: int | None = None
    ) -> None:
        """Undo changes: of samples (back to their original labels), of one event, or of one epoch.

        For an event or an epoch the samples return to the label they had before it. Of an epoch
        only what rules changed is undone, and no label that somebody chose since. Every sample
        concerned gets an event of rule "revert", in the epoch of the last event, also where its
        label stays the same: somebody chose it, and `UERM` leaves it alone from then on.
        """
        if sum(given is not None for given in (ids, event, epoch)) != 1:
            raise ValueError("revert: give exactly one of ids, event, epoch")
        if ids is not None:
            ids = self._distinct(ids)
            before = self.original_labels[ids]
        else:
            rows = self._rows(event, epoch)
            # Of several events of one sample, the earliest holds the label from before them.
            first = {row[0]: row[2] for row in reversed(rows.tolist())}
            first = dict(sorted(first.items()))
            ids = torch.tensor(list(first), dtype=torch.int64, device=rows.device)
            before = torch.tensor(list(first.values()), dtype=torch.int64, device=rows.device)
        self._append(ids, before, self._last_epoch(), REVERT)

    def fixed(self) -> Tensor:
        """Return `(n,)` True where the last event is a revert, a decision or a kept label."""
        return self._last_rule_is(*BY_HAND)

    def human_verified(self) -> Tensor:
        """Return `(n,)` True where a sample's last event is a decision of a person."""
        return self._last_rule_is(DECIDE)

    def _last_rule_is(self, *names: str) -> Tensor:
        is_one = self._is_rule(*names)
        # Samples without an event look up the False put at the end.
        return torch.cat([is_one, is_one.new_zeros(1)])[_last(self.event_integers, len(self))]

    def _is_rule(self, *names: str) -> Tensor:
        """Return `(events,)` True where the event has a rule of one of these names."""
        codes = [code for code, name in enumerate(self._rules()) if name in names]
        rules = self.event_integers[:, 4]
        return torch.isin(rules, torch.tensor(codes, dtype=rules.dtype, device=rules.device))

    def events(self, since: int = 0) -> list[Event]:
        """The events from number `since` on, oldest first."""
        return list(self._events(whole("since", since)))

    def replay(self) -> Tensor:
        """Return the labels `(n,)` that the events make of the original ones: `current_labels`."""
        return _replayed(self.original_labels, self.event_integers)

    def to_csv(self, path: str | Path) -> None:
        """Write the events with a header row."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Event._fields)
            writer.writerows(self._events())

    def to_jsonl(self, path: str | Path) -> None:
        """Write the events, one JSON object a line; an unknown or infinite score is null."""
        with Path(path).open("w", encoding="utf-8") as file:
            for event in self._events():
                known = {
                    name: None if isinstance(value, float) and not math.isfinite(value) else value
                    for name, value in event._asdict().items()
                }
                file.write(json.dumps(known) + "\n")

    def flow(self) -> Tensor:
        """Count original labels by current ones, `(K, K)`."""
        cell = self.original_labels * self.num_classes + self.current_labels
        counts = torch.bincount(cell, minlength=self.num_classes**2)
        return counts.view(self.num_classes, self.num_classes)

    def compare(self, true_labels: Tensor) -> Comparison:
        """Score the changes against the truth `(n,)`."""
        true_labels = torch.as_tensor(true_labels)
        if true_labels.shape != self.original_labels.shape:
            raise ValueError(
                f"true_labels: expected shape (n,) = ({len(self)},), got {tuple(true_labels.shape)}"
            )
        true = to_integers("true_labels", true_labels, self.num_classes).to(
            self.original_labels.device
        )
        original, current = self.original_labels, self.current_labels
        changed, wrong = current != original, original != true
        cell = true * self.num_classes + current
        counts = torch.bincount(cell, minlength=self.num_classes**2)
        return Comparison(
            right_before=_share(~wrong),
            right_after=_share(current == true),
            changed=int(changed.sum()),
            precision=_share((current == true)[changed]),
            recall=_share((current == true)[wrong]),
            confusion=counts.view(self.num_classes, self.num_classes),
        )

    def extra_repr(self) -> str:
        """Options shown by `repr`."""
        return (
            f"samples={len(self)}, num_classes={self.num_classes}, "
            f"events={len(self.event_integers)}"
        )

    def _events(self, since: int = 0) -> Iterator[Event]:
        rules = self._rules()
        *integers, codes = self.event_integers[since:].T.tolist()
        columns = (*integers, *self.event_scores[since:].T.tolist(), [rules[c] for c in codes])
        return map(Event._make, zip(count(since), *columns, strict=False))

    def _last_epoch(self) -> int:
        return int(self.event_integers[-1, 1]) if len(self.event_integers) else 0

    def _rules(self) -> list[str]:
        return bytes(self.rule_names.tolist()).decode().split("\n")

    def _rows(self, event: int | None, epoch: int | None) -> Tensor:
        if event is None:
            samples, epochs = self.event_integers[:, :2].T
            by_rule = ~self._is_rule(*BY_HAND) & ~self.fixed()[samples]
            return self.event_integers[by_rule & (epochs == whole("epoch", epoch))]
        event = whole("event", event)
        if event >= len(self.event_integers):
            raise ValueError(
                f"event: expected 0 <= event < {len(self.event_integers)}, got {event}"
            )
        return self.event_integers[event : event + 1]

    def _distinct(self, ids: Tensor) -> Tensor:
        ids = to_integers("ids", ids, len(self)).to(self.current_labels.device)
        if len(ids.unique()) != len(ids):
            raise ValueError("ids: expected distinct ids, got one more than once")
        return ids

    def check_state(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Raise a RuntimeError if a saved state belongs to another ledger, or to other events.

        Its original labels have to be those of this ledger, and its current ones what its events
        make of them.
        """
        name = prefix + "original_labels"
        saved, given = state_dict.get(name), self.original_labels
        if not isinstance(saved, Tensor) or saved.shape != given.shape:
            found = None if saved is None else tuple(saved.shape)
            raise RuntimeError(f"{name}: expected {tuple(given.shape)}, got {found}")
        differing = int((saved.to(given) != given).sum())
        if differing:
            raise RuntimeError(
                f"{name}: {differing} of {len(given)} differ from the labels "
                "this ledger was made with; is the data set in another order?"
            )
        current = state_dict.get(prefix + "current_labels")
        events = state_dict.get(prefix + "event_integers")
        if not isinstance(current, Tensor) or not isinstance(events, Tensor):
            raise RuntimeError(f"{prefix}current_labels, event_integers: expected tensors")
        if bool((current >= self.num_classes).any()):
            raise RuntimeError(
                f"{prefix}current_labels: a ledger of more than {self.num_classes} classes"
            )
        events = events.to(given)
        inside = ((events[:, 0] >= 0) & (events[:, 0] < len(given))).all()
        if not inside or not torch.equal(_replayed(given, events), current.to(given)):
            raise RuntimeError(
                f"{prefix}current_labels: not what the events make of the original labels"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.check_state(state_dict, prefix)
        # The record grows, so its saved tensors may be longer than this ledger's.
        for name in ("event_integers", "event_scores", "rule_names"):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _last(events: Tensor, samples: int) -> Tensor:
    """Return the number `(n,)` of each sample's last event; -1 where it has none."""
    number = torch.arange(len(events), device=events.device)
    none = torch.full((samples,), -1, device=events.device)
    return none.scatter_reduce(0, events[:, 0], number, "amax")


def _replayed(original: Tensor, events: Tensor) -> Tensor:
    """Return the labels `(n,)` that events make of the original ones."""
    last = _last(events, len(original))
    new = torch.cat([events[:, 3], events.new_zeros(1)])[last]
    return torch.where(last >= 0, new, original)


def _encode(names: list[str]) -> Tensor:
    return torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
