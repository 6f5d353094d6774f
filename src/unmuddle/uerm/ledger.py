"""`LabelLedger`: the current labels, and a record of every change to them."""

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

    Only `record`, `decide`, `keep` and `revert` change labels. Each change is recorded as an event,
    including a revert. Replaying the events on the original labels yields the current labels. All
    state consists of tensors in the `state_dict`, which can only be loaded into a ledger created
    with the same labels. The data set itself is never modified.

    Attributes:
        original_labels: `(n,)` original labels.
        current_labels: `(n,)` current labels. Do not write to them.

    Args:
        labels: `(n,)` original integer labels.
        num_classes: number of classes K; labels are in `[0, K)`.

    Raises:
        ValueError: a shape is invalid, or a label or id is out of range. Nothing is recorded.

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
    # One row per event: sample, epoch, old label, new label, index of the rule's name.
    event_integers: Tensor
    # One row per event: uncertainty, margin, threshold.
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
        """Assign new `labels` `(m,)` to samples `ids` `(m,)`, and record one event for each.

        Args:
            ids: distinct sample ids.
            labels: new labels of these samples.
            epoch: epoch of the change.
            rule: name of the rule, on one line, other than "revert", "decide" and "keep".
            uncertainty: `(m,)` uncertainty of the old labels.
            margin: `(m,)` margin by which the rule preferred the new labels.
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
        epoch: int | None,
        rule: str,
        scores: tuple[Tensor | float | None, ...] = (None, None, None),
    ) -> None:
        if epoch is None:
            epoch = int(self.event_integers[-1, 1]) if len(self.event_integers) else 0
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
        # Not in place: the labels in an earlier state dict must still match its events.
        self.current_labels = self.current_labels.index_copy(0, ids, labels)

    def decide(self, ids: Tensor, labels: Tensor, *, epoch: int | None = None) -> None:
        """Record `labels` `(m,)` that a person verified for samples `ids` `(m,)`.

        Every sample gets an event with rule "decide", even if the label is only confirmed. The
        default epoch is that of the last event. From then on, `UERM` does not relabel these
        samples, and uses them to calibrate how far it trusts the other labels.
        """
        self._append(ids, labels, epoch, DECIDE)

    def keep(self, ids: Tensor, labels: Tensor, *, epoch: int | None = None) -> None:
        """Fix unverified `labels` `(m,)` of samples `ids` `(m,)`, such as those of an earlier run.

        This works like `decide`, but with the rule "keep": `UERM` does not relabel these samples,
        and does not calibrate on them.
        """
        self._append(ids, labels, epoch, KEEP)

    def revert(
        self, *, ids: Tensor | None = None, event: int | None = None, epoch: int | None = None
    ) -> None:
        """Revert samples to their original labels, or undo one event or one epoch.

        For an event or an epoch, samples return to the label that they had before it. For an epoch,
        only changes made by rules are undone, and labels set by hand since then are kept. Every
        reverted sample gets an event with rule "revert" and the epoch of the last event, even if
        its label stays the same. The label then counts as set by hand, and `UERM` does not change
        it any more.
        """
        if sum(given is not None for given in (ids, event, epoch)) != 1:
            raise ValueError("revert: give exactly one of ids, event, epoch")
        if ids is not None:
            ids = self._distinct(ids)
            before = self.original_labels[ids]
        else:
            rows = self._rows(event, epoch)
            # If a sample has several events, the earliest one holds the label before all of them.
            first = {row[0]: row[2] for row in reversed(rows.tolist())}
            first = dict(sorted(first.items()))
            ids = torch.tensor(list(first), dtype=torch.int64, device=rows.device)
            before = torch.tensor(list(first.values()), dtype=torch.int64, device=rows.device)
        self._append(ids, before, None, REVERT)

    def fixed(self) -> Tensor:
        """Return a mask `(n,)` of samples whose last event is a revert, a decision or "keep"."""
        return self._last_rule_is(*BY_HAND)

    def human_verified(self) -> Tensor:
        """Return a mask `(n,)` of samples whose last event is a decision by a person."""
        return self._last_rule_is(DECIDE)

    def _last_rule_is(self, *names: str) -> Tensor:
        is_one = self._is_rule(*names)
        # Samples without an event have index -1, which selects the False appended at the end.
        return torch.cat([is_one, is_one.new_zeros(1)])[_last(self.event_integers, len(self))]

    def _is_rule(self, *names: str) -> Tensor:
        """Return a mask `(events,)` of the events whose rule has one of these names."""
        codes = [code for code, name in enumerate(self._rules()) if name in names]
        rules = self.event_integers[:, 4]
        return torch.isin(rules, torch.tensor(codes, dtype=rules.dtype, device=rules.device))

    def events(self, since: int = 0) -> list[Event]:
        """Return the events from number `since` on, oldest first."""
        return list(self._events(whole("since", since)))

    def replay(self) -> Tensor:
        """Return the labels `(n,)` after replaying all events; they equal `current_labels`."""
        return _replayed(self.original_labels, self.event_integers)

    def to_csv(self, path: str | Path) -> None:
        """Write the events to a CSV file with a header row."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Event._fields)
            writer.writerows(self._events())

    def to_jsonl(self, path: str | Path) -> None:
        """Write the events as JSON Lines; unknown and infinite scores are null."""
        with Path(path).open("w", encoding="utf-8") as file:
            for event in self._events():
                known = {
                    name: None if isinstance(value, float) and not math.isfinite(value) else value
                    for name, value in event._asdict().items()
                }
                file.write(json.dumps(known) + "\n")

    def flow(self) -> Tensor:
        """Return counts `(K, K)` of samples by original label and current label."""
        cell = self.original_labels * self.num_classes + self.current_labels
        counts = torch.bincount(cell, minlength=self.num_classes**2)
        return counts.view(self.num_classes, self.num_classes)

    def compare(self, true_labels: Tensor) -> Comparison:
        """Compare the original and the current labels with the true labels `(n,)`."""
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
        """Raise a RuntimeError if a saved state does not match this ledger or its own events.

        The saved original labels must equal those of this ledger. The saved current labels must be
        the result of replaying the saved events.
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
    """Return the number `(n,)` of each sample's last event, or -1 if it has none."""
    number = torch.arange(len(events), device=events.device)
    none = torch.full((samples,), -1, device=events.device)
    return none.scatter_reduce(0, events[:, 0], number, "amax")


def _replayed(original: Tensor, events: Tensor) -> Tensor:
    """Return the labels `(n,)` after replaying the events on the original labels."""
    last = _last(events, len(original))
    new = torch.cat([events[:, 3], events.new_zeros(1)])[last]
    return torch.where(last >= 0, new, original)


def _encode(names: list[str]) -> Tensor:
    return torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
