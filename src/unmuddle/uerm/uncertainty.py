"""Estimators of the uncertainty of labels: 0 certainly right, 1 certainly wrong.

An estimator is any callable `Evidence -> (n,)` in [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from unmuddle.uerm.evidence import Evidence

Estimator = Callable[[Evidence], Tensor]


def odds(evidence: Evidence) -> Tensor:
    """`v^2 / (v^2 + (e p[y])^2)` for the current label y and `v = max_{k != y} p[k]`.

    1/2 where another class is e times as likely as the label. Unlike `mislabeled` it does not wait
    for the noise to show, and distrusts right labels of hard samples besides.

    Examples:
        >>> from unmuddle.uerm import Distribution, gather_evidence
        >>> p, y = torch.tensor([[0.25, 0.6, 0.15]]), torch.tensor([0])
        >>> odds(gather_evidence(Distribution(p), y, 3))
        tensor([0.4381])
    """
    for_label = (math.e * evidence.predictions.prob_of(evidence.current)).square()
    for_rival = evidence.predictions.rival(evidence.current)[0].square()
    return (for_rival / (for_rival + for_label)).nan_to_num(0.5)


def mislabeled(evidence: Evidence) -> Tensor:
    """`1 - P(label is right)`, by the posterior of the noise model: see `fit_noise`."""
    return (1 - evidence.posterior.prob_of(evidence.current)).clamp(0, 1)


def margin(evidence: Evidence) -> Tensor:
    """`(1 - (p[y] - max_{k != y} p[k])) / 2` for the current label y.

    Examples:
        >>> from unmuddle.uerm import Distribution, gather_evidence
        >>> p, y = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0])
        >>> margin(gather_evidence(Distribution(p), y, 3))
        tensor([0.2500])
    """
    return (1 - evidence.predictions.margin(evidence.current)) / 2


def entropy(evidence: Evidence) -> Tensor:
    """`-Σ_k p[k] log p[k] / log K`: how undecided the prediction is, whatever the label.

    Of a top-k history, the entropy of the entries it keeps.
    """
    p = evidence.predictions.probabilities.float()
    return (torch.special.entr(p).sum(1) / torch.tensor(evidence.num_classes).log()).clamp(0, 1)


def neighbours(evidence: Evidence) -> Tensor:
    """`margin`, of the votes of the sample's neighbours in the embedding space."""
    if evidence.votes is None:
        raise ValueError("neighbours: needs votes; make UERM with collect=('votes',)")
    return (1 - evidence.votes.margin(evidence.current)) / 2


def attention(evidence: Evidence) -> Tensor:
    """`1 -` the importance that the attention head gives the sample (Self-Cure Network)."""
    if evidence.importance is None:
        raise ValueError("attention: needs importance; make UERM with collect=('importance',)")
    return 1 - evidence.importance


def ensemble(*estimators: Estimator) -> Estimator:
    """The mean of several estimators: they err differently.

    Examples:
        >>> both = ensemble(margin, entropy)
    """
    if not estimators:
        raise ValueError("ensemble: expected at least one estimator")

    return partial(_mean, estimators)


def _mean(estimators: Sequence[Estimator], evidence: Evidence) -> Tensor:
    return torch.stack([estimator(evidence) for estimator in estimators]).mean(0)


EstimatorName = Literal["mislabeled", "odds", "margin", "entropy", "neighbours", "attention"]
_ESTIMATORS: dict[str, Estimator] = {
    "odds": odds,
    "mislabeled": mislabeled,
    "margin": margin,
    "entropy": entropy,
    "neighbours": neighbours,
    "attention": attention,
}
_NEEDS = {"neighbours": "votes", "attention": "importance"}


def choose_estimator(
    estimator: EstimatorName | Sequence[EstimatorName] | Estimator,
) -> tuple[Estimator, set[str]]:
    """An estimator by its name or names, or one's own; the evidence it needs beside predictions."""
    if callable(estimator):
        return estimator, set()
    names = (estimator,) if isinstance(estimator, str) else tuple(estimator)
    for name in names:
        if name not in _ESTIMATORS:
            raise ValueError(
                f"estimator: expected some of {get_args(EstimatorName)} or a callable, got {name!r}"
            )
    needed = {_NEEDS[name] for name in names if name in _NEEDS}
    return ensemble(*(_ESTIMATORS[name] for name in names)), needed
