"""From the losses of anchors to the result."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorWeights:
    """`(N,)`: what the loss of each anchor counts for; the result is their weighted sum.

    Attributes:
        included: `(N,)` whether an anchor takes part, or None if all do.
        weight: `(B,)` of the samples, or None.
        views: V.
        first_view_only: only the first view of each sample is an anchor.
        counts_zeros: anchors without a loss count as 0 instead of not at all.
        is_mean: the weights add up to 1.
    """

    included: Tensor | None
    weight: Tensor | None
    views: int
    first_view_only: bool
    counts_zeros: bool
    is_mean: bool

    def __call__(self, has_loss: Tensor) -> Tensor:
        """From `(N,)`, 1 where an anchor has a loss, else 0."""
        weights = has_loss
        if self.counts_zeros:
            everyone = torch.ones_like(has_loss)
            weights = everyone if self.included is None else everyone * self.included
        if self.weight is not None:
            weights = weights * self.weight.repeat_interleave(self.views)
        if self.first_view_only:
            row = torch.arange(len(weights), device=weights.device)
            weights = weights * (row % self.views == 0)
        if self.is_mean:
            # Without a loss there is nothing to divide: 0 / tiny is 0.
            weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        return weights
