"""Weights of the positives of each anchor.

The contrast set has T rows: first the N anchors of the batch, then the keys. `w_ij >= 0` is the
weight of row j as a positive of anchor i. A row is never a positive of itself, and an ignored row
is never a positive. Each kind of supervision implements the four methods of `Positives`, three of
them without an (N, T) matrix.
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
        """Return `w` for some anchors and rows; entries of a row with itself are undefined."""
        ...


@dataclass
class Classes:
    """`w_ij = 1` for rows of the same class.

    Attributes:
        labels: `(T,)` integers.
        included: `(T,)` 1 for an included row, 0 for an ignored row; None if all are included.
        anchors: number of anchors N.
        dtype: dtype of the weights.
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
        """`sum_j w_ij z_j`, from class sums instead of pairs, since the positive term is linear."""
        return self._sum_others(z, self.anchors)

    def spread(self, b: Tensor) -> Tensor:
        """`sum_i w_ij b_i`."""
        return self._sum_others(b, len(self.labels))

    def tile(self, rows: slice, cols: slice) -> Tensor:
        """Return `w` for some anchors and rows."""
        every, is_whole = self.labels, rows == cols == slice(0, len(self.labels))
        a, b = (every, every) if is_whole else (every[rows], every[cols])
        out = torch.empty(len(a), len(b), dtype=self.dtype, device=a.device)
        torch.eq(a.unsqueeze(1), b, out=out)  # in one pass
        if self.included is None:
            return out
        return out.mul_(self.included[cols])  # ignored rows share a label, so columns suffice

    def _sum_others(self, x: Tensor, size: int) -> Tensor:
        """Return the sum of x over the other rows of the class, for each of `size` first rows."""
        if self.included is not None:
            x = (x.t() * self.included[: len(x)]).t()
        group = self.group() if self._group is None else self._group
        sums = x.new_zeros(len(group), *x.shape[1:]).index_add_(0, group[: len(x)], x)
        others = sums.index_select(0, group[:size])
        others[: self.anchors] -= x[: self.anchors]
        return others if self.included is None else (others.t() * self.included[:size]).t()

    def group(self) -> Tensor:
        """Return the class index of each row `(T,)`, from 0 on.

        Sorting allows any int64 labels and needs no dynamic shapes.
        """
        if self._group is None:  # not a cached_property: torch.compile cannot trace its lock
            ordered, order = self.labels.sort()
            starts = torch.zeros_like(ordered)
            starts[1:] = ordered[1:] != ordered[:-1]
            self._group = torch.empty_like(order).scatter_(0, order, starts.cumsum(0))
        return self._group


@dataclass
class SoftClasses:
    """`w_ij = y_i · y_j` for one-hot, soft or multi-hot labels.

    Attributes:
        memberships: `(T, C)` non-negative labels, 0 in ignored rows.
        anchors: number of anchors N.
    """

    memberships: Tensor
    anchors: int

    def count(self) -> Tensor:
        """`sum_j w_ij`."""
        # Subtracting the row before the product gives an exact 0 where no other row shares its
        # classes. This needs fp64: w_ii may be far larger than the sum of all other w_ij.
        every = self.memberships.double()
        own = every[: self.anchors]
        return (own * (every.sum(0) - own)).sum(1).to(self.memberships.dtype)

    def sum(self, z: Tensor) -> Tensor:
        """`sum_j w_ij z_j`, computed from the sums of each class."""
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
        """Return `w` for some anchors and rows."""
        return self.memberships[rows] @ self.memberships[cols].T


@dataclass
class SampleMask:
    """`w_ij = mask[b(i), b(j)]`, where b(i) is the sample of row i; keys are never positives.

    Attributes:
        mask: `(B, B)` non-negative weights between samples. The diagonal holds the weights between
            the views of a sample.
        views: number of views V; N = B * V and `b(i) = i // V`.
        rows: number of rows T.
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
        """`sum_j w_ij z_j`, computed from the sums over each sample's views."""
        return self._sum(self.mask, z[: len(self.mask) * self.views])

    def spread(self, b: Tensor) -> Tensor:
        """`sum_i w_ij b_i`."""
        return F.pad(self._sum(self.mask.T, b), (0, 0, 0, self.rows - len(b)))

    def tile(self, rows: slice, cols: slice) -> Tensor:
        """Return `w` for some anchors and rows."""
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
    """Return the weights for `(T,)` integer labels, `(T, C)` soft labels, or a `(B, B)` mask."""
    if mask is not None:
        mask, views = mask.to(dtype), anchors // len(mask) if len(mask) else 1
        if views == 1:
            mask = mask.clone().fill_diagonal_(0)  # not used with a single view
        return SampleMask(mask, views, rows)
    assert labels is not None
    if labels.ndim == 1:
        return Classes(labels, included, anchors, dtype)
    memberships = labels.to(dtype)
    return SoftClasses(
        memberships if included is None else memberships * included[:, None], anchors
    )
