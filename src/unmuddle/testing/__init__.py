"""Tools for testing losses and modules: laws, Hypothesis strategies and error budgets."""

from unmuddle.testing.check import (
    BrokenLawError,
    Report,
    Result,
    check_loss,
    parametrize_with_laws,
    try_law,
)
from unmuddle.testing.examples import Batch, ContrastiveBatch, NoisyLabels
from unmuddle.testing.invariance import BatchInvariance, batch_invariance
from unmuddle.testing.law import Finding, Law, law, measured
from unmuddle.testing.laws import LAWS
from unmuddle.testing.loss import Loss, NotApplicableError
from unmuddle.testing.tolerance import (
    assert_gradient_within_budget,
    assert_within_budget,
    saved_bytes,
)

__all__ = [
    "LAWS",
    "Batch",
    "BatchInvariance",
    "BrokenLawError",
    "ContrastiveBatch",
    "Finding",
    "Law",
    "Loss",
    "NoisyLabels",
    "NotApplicableError",
    "Report",
    "Result",
    "assert_gradient_within_budget",
    "assert_within_budget",
    "batch_invariance",
    "check_loss",
    "law",
    "measured",
    "parametrize_with_laws",
    "saved_bytes",
    "try_law",
]
