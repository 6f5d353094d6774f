"""Records of a ledger: a change, a suggestion, a comparison with the truth."""

from typing import NamedTuple

from torch import Tensor


class Event(NamedTuple):
    """Change of a label."""

    event: int
    sample: int
    epoch: int
    old: int
    new: int
    uncertainty: float
    margin: float
    threshold: float
    rule: str


class Suggestion(NamedTuple):
    """A label that may be wrong, and the evidence for another label.

    Attributes:
        sample: id of the sample.
        label: current label.
        suggested: the label that the evidence prefers.
        margin: margin by which the evidence prefers it, as defined by the policy.
        threshold: bound that the margin must pass for a relabel; 0 for labels to verify.
        uncertainty: uncertainty of the current label; NaN if unknown.
        rule: name of the policy.
    """

    sample: int
    label: int
    suggested: int
    margin: float
    threshold: float
    uncertainty: float
    rule: str


class Comparison(NamedTuple):
    """Comparison of the labels with the truth.

    Attributes:
        right_before: share of original labels that are right.
        right_after: share of current labels that are right.
        changed: number of samples whose label differs from the original.
        precision: share of changed labels that are right; NaN when none is changed.
        recall: share of wrong original labels that are right now; NaN when none was wrong.
        confusion: `(K, K)` counts, true label by current label.
    """

    right_before: float
    right_after: float
    changed: int
    precision: float
    recall: float
    confusion: Tensor
