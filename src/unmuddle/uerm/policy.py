"""When to relabel: evidence about all samples -> proposals. Pure; nothing is written here.

A policy is any callable `Evidence -> Proposals`; bind options with `functools.partial`.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unmuddle.uerm.uncertainty import label_margin


class Evidence(NamedTuple):
    """What is known of n samples and K classes.

    Attributes:
        probabilities: `(n, K)` running mean of each sample's predictions.
        uncertainty: `(n,)` of the current label, in [0, 1].
        original: `(n,)` labels as given.
        current: `(n,)` labels as they stand.
    """

    probabilities: Tensor
    uncertainty: Tensor
    original: Tensor
    current: Tensor


class Proposals(NamedTuple):
    """A label for every sample, and why.

    Attributes:
        labels: `(n,)`; equal to the current label where no change is proposed.
        margin: `(n,)` by how much the predictions prefer another class to the compared label.
        threshold: `(n,)` or one number; the bound that the margin is compared with.
        rule: name of the policy.
    """

    labels: Tensor
    margin: Tensor
    threshold: Tensor | float
    rule: str


def ema_margin(evidence: Evidence, *, threshold: float = 0.4, hysteresis: float = 0.2) -> Proposals:
    """Relabel where the mean prediction contradicts the ORIGINAL label; take back when it recovers.

    With `m = max_k p[k] - p[original]`: `m > threshold` proposes `argmax p`; a relabeled sample
    returns to its original label when `m < threshold - hysteresis`; between the two it keeps what
    it has. Averaging over epochs and never comparing with an already changed label is what keeps
    errors from feeding on themselves (our choice).

    Examples:
        >>> p = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
        >>> given = torch.tensor([1, 0])
        >>> ema_margin(Evidence(p, torch.zeros(2), given, given)).labels
        tensor([0, 0])
    """
    margin = -label_margin(evidence.probabilities, evidence.original)
    changed = evidence.current != evidence.original
    take_back = changed & (margin < threshold - hysteresis)
    labels = torch.where(take_back, evidence.original, evidence.current)
    labels = torch.where(margin > threshold, evidence.probabilities.argmax(1), labels)
    bound = threshold - hysteresis * take_back.double()
    return Proposals(labels, margin, bound, "ema_margin")


def scn(
    evidence: Evidence,
    *,
    threshold: float = 0.2,
    group: Literal["low", "all"] = "low",
    low_fraction: float = 0.3,
) -> Proposals:
    """Self-Cure Network: relabel where `max_k p[k] - p[current] > threshold`.

    The paper looks at the group of low importance (`group="low"`: the most uncertain
    `low_fraction` of the samples), its released code at every sample (`group="all"`). It decides
    on single predictions of augmented training batches: use it with `momentum=0`. A changed label
    is the one compared from then on; nothing remembers the original.

    References:
        Wang et al., Suppressing Uncertainties for Large-Scale Facial Expression Recognition, 2020,
        arXiv 2002.10392.
    """
    if group not in ("low", "all"):
        raise ValueError(f"group: expected 'low' or 'all', got {group!r}")
    margin = -label_margin(evidence.probabilities, evidence.current)
    relabel = margin > threshold
    if group == "low":
        rank = evidence.uncertainty.argsort(descending=True).argsort()
        relabel = relabel & (rank < round(low_fraction * len(rank)))
    best = evidence.probabilities.argmax(1)
    return Proposals(torch.where(relabel, best, evidence.current), margin, threshold, "scn")
