"""Estimators of label uncertainty, from 0 (certainly right) to 1 (certainly wrong).

An estimator is any callable `Evidence -> (n,)` in [0, 1].
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from unmuddle.uerm.evidence import Evidence

Estimator = Callable[[Evidence], Tensor]


def mislabeled(evidence: Evidence) -> Tensor:
    """Return `1 - P(label is right)` by the posterior of the noise model; see `fit_noise`."""
    return evidence.about(evidence.current).uncertainty


def attention(evidence: Evidence) -> Tensor:
    """Return 1 minus the sample's importance by the attention head (Self-Cure Network)."""
    if evidence.importance is None:
        raise ValueError('attention: no importance; create UERM with estimator="attention"')
    return 1 - evidence.importance


EstimatorName = Literal["mislabeled", "attention"]
_ESTIMATORS: dict[str, Estimator] = {"mislabeled": mislabeled, "attention": attention}


def choose_estimator(estimator: EstimatorName | Estimator) -> Estimator:
    """Return an estimator, given as a callable or by name."""
    if callable(estimator):
        return estimator
    if not isinstance(estimator, str) or estimator not in _ESTIMATORS:
        raise ValueError(
            f"estimator: expected one of {tuple(_ESTIMATORS)} or a callable, got {estimator!r}"
        )
    return _ESTIMATORS[estimator]
