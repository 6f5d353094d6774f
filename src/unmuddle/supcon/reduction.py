"""From the losses of anchors to the result."""

from typing import NamedTuple

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


class AnchorWeights(NamedTuple):
    """`(N,)`: what the loss of each anchor counts for, 0 where there is none.

    The result is their weighted sum.

    Attributes:
        included: `(N,)` whether an anchor takes part, or None if all do.
        weight: `(B,)` of the samples, or None.
        views: V.
        first_view_only: only the first view of each sample is an anchor.
        counts_zeros: anchors without a loss count as losses of 0 instead of not at all.
        is_mean: the weights add up to 1.
    """

    included: Tensor | None
    weight: Tensor | None
    views: int
    first_view_only: bool
    counts_zeros: bool
    is_mean: bool

    def equal_parts(self, n: int) -> int | None:
        """What n anchors that all have a loss are divided by, or None if weights differ."""
        if self.included is not None or self.weight is not None or self.first_view_only:
            return None
        return n if self.is_mean else 1

    def of(self, has_loss: Tensor) -> Tensor:
        """From `(N,)`, 1 where an anchor has a loss, else 0."""
        counted = has_loss
        if self.counts_zeros:
            counted = torch.ones_like(has_loss)
            counted = counted if self.included is None else counted * self.included
        if self.weight is not None:
            counted = counted * self.weight.repeat_interleave(self.views)
        if self.first_view_only:
            row = torch.arange(len(counted), device=counted.device)
            counted = counted * (row % self.views == 0)
        weights = counted * has_loss if self.counts_zeros else counted
        if self.is_mean:
            # Without a loss there is nothing to divide: 0 / tiny is 0.
            weights = weights / counted.sum().clamp_min(TINY)
        return weights


# Losses as they are.
EACH = AnchorWeights(None, None, 1, False, False, False)
