"""Reduction of the losses of the anchors to the result."""

from typing import NamedTuple

import torch
from torch import Tensor


class Reduction(NamedTuple):
    """Weighted mean, weighted sum, or weighted losses of N anchors.

    Attributes:
        kind: "mean", "sum" or "none".
        included: `(N,)` whether an anchor takes part, or None if all do.
        weight: `(B,)` weights of the samples, or None.
        views: V.
        first_view_only: only the first view of each sample is an anchor.
        counts_zeros: anchors without a loss count as losses of 0 instead of not at all.
    """

    kind: str
    included: Tensor | None
    weight: Tensor | None
    views: int
    first_view_only: bool
    counts_zeros: bool

    def reduce(self, losses: Tensor, has_loss: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Return the weighted losses or their sum, and the weights: `(N,)` or one number."""
        if has_loss is None:
            if self.included is None and self.weight is None and not self.first_view_only:
                if self.kind == "mean":
                    return losses.mean(), 1 / losses.shape[0]
                return (losses if self.kind == "none" else losses.sum()), 1.0
            has_loss = torch.ones_like(losses)
        counted = has_loss
        if self.counts_zeros:
            counted = torch.ones_like(has_loss) * (1 if self.included is None else self.included)
        if self.weight is not None:
            counted = counted * self.weight.repeat_interleave(self.views)
        if self.first_view_only:
            row = torch.arange(len(counted), device=counted.device)
            counted = counted * (row % self.views == 0)
        weights = counted * has_loss if self.counts_zeros else counted
        if self.kind == "mean":
            total = counted.sum()
            weights = weights / torch.where(total > 0, total, 1)
        return (losses * weights if self.kind == "none" else torch.dot(losses, weights)), weights
