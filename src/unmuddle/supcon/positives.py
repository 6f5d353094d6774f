"""Weights of positives: how much each row is a positive of each anchor.

The contrast set has T rows: the N anchors of the batch first, keys after them. `w_ij >= 0` is how
much row j is a positive of anchor i; a row is never its own positive, a row that takes no part is
nobody's. Every kind of supervision answers the same four questions, three of them without an
(N, T) matrix.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Positives(Protocol):
    """The weights `w_ij` of N anchors over T rows."""

    def count(self) -> Tensor:
        """Return `sum_j w_ij` `(N,)`, exactly 0 where anchor i has no positive."""
        ...

    def sum(self, z: Tensor) -> Tensor:
        """Map `(T, D)` to `(N, D)`: `sum_j w_ij z_j`."""
        ...

    def spread(self, b: Tensor) -> Tensor:
        """Map `(N, D)` to `(T, D)`: `sum_i w_ij b_i`, the transpose of `sum`."""
        ...

    def tile(self, rows: slice, cols: slice) -> Tensor:
        """`w` itself for some anchors and rows; what it says of a row and itself is undefined."""
        ...


@dataclass
class Classes:
    """`w_ij = 1` for rows of the same class.

    Attributes:
        labels: `(T,)` integers.
        included: `(T,)` 1 for a row that takes part, 0 for an ignored one; None: all do.
        anchors: N.
        dtype: of the weights.
    """

    labels: Tensor
    included: Tensor | None
    anchors: int
    dtype: torch.dtype
    _group: Tensor | None = None

    def count(self) -> Tensor:
        """`sum_j w_ij`."""
        ones = torch.ones(len(self.labels), dtype=self.dtype, device=self.labels.device)
        return self._sum_others(ones, self.anchors)

    def sum(self, z: Tensor) -> Tensor:
        """`sum_j w_ij z_j`: class sums replace the pairs, the positive term is linear."""
        return self._sum_others(z, self.anchors)

    def spread(self, b: Tensor) -> Tensor:
        """`sum_i w_ij b_i`."""
        return self._sum_others(b, len(self.labels))

    def tile(self, rows: slice, cols: slice) -> Tensor:
        """Return the weights themselves."""
        every, is_whole = self.labels, rows == cols == slice(0, len(self.labels))
        a, b = (every, every) if is_whole else (every[rows], every[cols])
        out = torch.empty(len(a), len(b), dtype=self.dtype, device=a.device)
        torch.eq(a.unsqueeze(1), b, out=out)  # in one pass
        if self.included is None:
            return out
        return out.mul_(self.included[cols])  # no row of another label is ignored

    def _sum_others(self, x: Tensor, size: int) -> Tensor:
        """Return for each of the first `size` rows the sum of x over the others of its class."""
        if self.included is not None:
            x = (x.t() * self.included[: len(x)]).t()
        group = self.group() if self._group is None else self._group
        sums = x.new_zeros(len(group), *x.shape[1:]).index_add_(0, group[: len(x)], x)
        others = sums.index_select(0, group[:size])
        others[: self.anchors] -= x[: self.anchors]
        return others if self.included is None else (others.t() * self.included[:size]).t()

    def group(self) -> Tensor:
        """Number the classes `(T,)` 0, 1, ... by sorting: any int64 labels, no dynamic shape."""
        if self._group is None:  # no cached_property, whose lock torch.compile does not know
            ordered, order = self.labels.sort()
            starts = torch.zeros_like(ordered)
            starts[1:] = ordered[1:] != ordered[:-1]
            self._group = torch.empty_like(order).scatter_(0, order, starts.cumsum(0))
        return self._group


@dataclass
class SoftClasses:
    """`w_ij = y_i · y_j`: one-hot rows are classes, others are distributions or several classes.

    Attributes:
        memberships: `(T, C)` non-negative, 0 in the rows that take no part.
        anchors: N.
    """

    memberships: Tensor
    anchors: int

    def count(self) -> Tensor:
        """`sum_j w_ij`."""
        # Taking a row away before the product leaves an exact 0 where nobody shares its classes. In
        # fp64, because a row may weigh far more with itself than with all others together.
        every = self.memberships.double()
        own = every[: self.anchors]
        return (own * (every.sum(0) - own)).sum(1).to(self.memberships.dtype)

    def sum(self, z: Tensor) -> Tensor:
        """`sum_j w_ij z_j`, by the sums of each class."""
        every, rows = self.memberships.double(), z.double()  # as in count
        own = every[: self.anchors]
        total = own @ (every.T @ rows)
        return (total - (own * own).sum(1, keepdim=True) * rows[: self.anchors]).to(z.dtype)

    def spread(self, b: Tensor) -> Tensor:
        """`sum_i w_ij b_i`."""
        every, rows = self.memberships.double(), b.double()
        own = every[: self.anchors]
        spread = every @ (own.T @ rows)
        spread[: self.anchors] -= (own * own).sum(1, keepdim=True) * rows
        return spread.to(b.dtype)

    def tile(self, rows: slice, cols: slice) -> Tensor:
        """Return the weights themselves."""
        return self.memberships[rows] @ self.memberships[cols].T


@dataclass
class SampleMask:
    """`w_ij = mask[b(i), b(j)]` for views of samples b; keys are nobody's positives.

    Attributes:
        mask: `(B, B)` non-negative weights between samples; its diagonal is for a sample's views.
        views: V, so that N = B * V and `b(i) = i // V`.
        rows: T.
    """

    mask: Tensor
    views: int
    rows: int

    def count(self) -> Tensor:
        """`sum_j w_ij`."""
        own = self.mask.diagonal()
        total = self.views * self.mask.clone().fill_diagonal_(0).sum(1) + (self.views - 1) * own
        return total.repeat_interleave(self.views)

    def sum(self, z: Tensor) -> Tensor:
        """`sum_j w_ij z_j`, by the sums of each sample's views."""
        return self._sum(self.mask, z[: len(self.mask) * self.views])

    def spread(self, b: Tensor) -> Tensor:
        """`sum_i w_ij b_i`."""
        return F.pad(self._sum(self.mask.T, b), (0, 0, 0, self.rows - len(b)))

    def tile(self, rows: slice, cols: slice) -> Tensor:
        """Return the weights themselves."""
        index = torch.arange(self.rows, device=self.mask.device) // self.views
        row, col = index[rows][:, None], index[cols]
        size = len(self.mask)
        weights = self.mask[row.clamp(max=size - 1), col.clamp(max=size - 1)]
        return weights.masked_fill((row >= size) | (col >= size), 0)

    def _sum(self, mask: Tensor, z: Tensor) -> Tensor:
        sample = z.unflatten(0, (-1, self.views))
        total = sample.sum(1, keepdim=True)
        others = mask.clone().fill_diagonal_(0) @ total[:, 0]
        return (others[:, None] + mask.diagonal()[:, None, None] * (total - sample)).flatten(0, 1)


def find_positives(
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    anchors: int,
    rows: int,
    dtype: torch.dtype,
) -> Positives:
    """Choose the weights for `(T,)` integer labels, `(T, C)` soft labels, or a `(B, B)` mask."""
    if mask is not None:
        mask, views = mask.to(dtype), anchors // len(mask) if len(mask) else 1
        if views == 1:
            mask = mask.clone().fill_diagonal_(0)  # of no use, whatever it is
        return SampleMask(mask, views, rows)
    assert labels is not None
    if labels.ndim == 1:
        return Classes(labels, included, anchors, dtype)
    memberships = labels.to(dtype)
    return SoftClasses(
        memberships if included is None else memberships * included[:, None], anchors
    )
