"""Findings and conditions that several laws share."""

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, measured
from unmuddle.testing.loss import Loss, NotApplicableError


def same_value(loss: Loss, batch: Batch, x: Tensor, labels: Tensor) -> Finding:
    """Compare the loss of `x` and `labels` with the loss of the batch."""
    value, budget = measured(loss, loss.value, batch.features, batch.labels)
    return Finding(loss.value(x, labels), "==", value, budget)


def number(value: float) -> Tensor:
    """Return the number as an fp64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def finite(values: Tensor) -> Finding:
    """Require all values to be finite."""
    return Finding(values, "is finite")


def need_positives(batch: Batch) -> None:
    """Raise `NotApplicableError` if no label occurs twice."""
    if batch.classes >= batch.n:
        raise NotApplicableError
