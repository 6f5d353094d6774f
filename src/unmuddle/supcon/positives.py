"""Who is a positive of whom, among the N rows of a batch.

Both kinds give the same three things: `count()` `(N,)`, the total weight of each row's positives;
`sum(z)` `(N, D)`, the weighted sum of each row's positives, without an N x N matrix; and
`dense()` `(N, N)`, the weights themselves, for the reference. A row is never its own positive.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassPositives:
    """Rows of the same class are each other's positives.

    Attributes:
        group: `(N,)` class of each row, an integer in `[0, N)`.
        included: `(N,)` 1 for a row that takes part, 0 for an ignored one.
    """

    group: Tensor
    included: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, included: Tensor) -> "ClassPositives":
        """Number the classes 0, 1, ... by sorting: any int64 labels, no data-dependent shape."""
        ordered, order = labels.sort()
        starts = torch.zeros_like(ordered)
        starts[1:] = ordered[1:] != ordered[:-1]
        return cls(torch.empty_like(order).scatter_(0, order, starts.cumsum(0)), included)

    def count(self) -> Tensor:
        """Total weight of each row's positives."""
        sizes = torch.zeros_like(self.included).index_add(0, self.group, self.included)
        return (sizes[self.group] - 1) * self.included

    def sum(self, z: Tensor) -> Tensor:
        """Weighted sum of each row's positives."""
        # The positive term is linear: class sums replace the N x N similarities.
        z = z * self.included[:, None]
        sums = torch.zeros_like(z).index_add(0, self.group, z)
        return (sums[self.group] - z) * self.included[:, None]

    def dense(self) -> Tensor:
        """The weights themselves."""
        weights = (self.group[:, None] == self.group).to(self.included.dtype)
        return (weights * self.included[:, None] * self.included).fill_diagonal_(0)


@dataclass(frozen=True)
class MaskPositives:
    """Row i, a view of sample b(i), weighs row j as `mask[b(i), b(j)]`.

    Attributes:
        mask: `(B, B)` non-negative weights between samples; its diagonal is for a sample's views.
        views: V, so that N = B * V and `b(i) = i // V`.
    """

    mask: Tensor
    views: int

    def count(self) -> Tensor:
        """Total weight of each row's positives."""
        total = self.views * self.mask.sum(1) - self.mask.diagonal()
        return total.repeat_interleave(self.views)

    def sum(self, z: Tensor) -> Tensor:
        """Weighted sum of each row's positives."""
        per_sample = self.mask @ z.unflatten(0, (-1, self.views)).sum(1)
        own = self.mask.diagonal().repeat_interleave(self.views)
        return per_sample.repeat_interleave(self.views, 0) - own[:, None] * z

    def dense(self) -> Tensor:
        """The weights themselves."""
        weights = self.mask.repeat_interleave(self.views, 0).repeat_interleave(self.views, 1)
        return weights.fill_diagonal_(0)


Positives = ClassPositives | MaskPositives
