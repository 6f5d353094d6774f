"""One contrastive problem, as every backend takes it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.positives import Positives, find_positives

Over = Literal["all", "negatives", "positives"]
MAX_KERNEL_DIM = 2048


class ContrastSet(NamedTuple):
    """Anchors and keys in one matrix.

    Attributes:
        x: `(T, D)`: the N = B·V anchors, the views of a sample side by side, then the keys.
        labels: `(T,)` int64 classes or `(T, C)` memberships, or None with a mask.
        mask: `(B, B)` or None.
        included: `(T,)` whether a row takes part, or None if all do.
    """

    x: Tensor
    labels: Tensor | None
    mask: Tensor | None
    included: Tensor | None


class Options(NamedTuple):
    """What is computed of a contrast set, and how.

    Attributes:
        anchors: N, the first rows of the contrast set.
        first: first row of the anchors to compute.
        last: first row behind them.
        sharded: other processes compute the other anchors.
        normalize: scale rows to unit length.
        positives: "out" or "in".
        denominator: "all" or "negatives".
        product_dtype: of the operands of the large products, where the backend has a choice.
        impl: "tiled" or "triton".
        one_tile: all pairs fit one tile, which has an algorithm of its own.
        keep: there will be a backward, which similarities may be kept for.
    """

    anchors: int
    first: int
    last: int
    sharded: bool
    normalize: bool
    positives: str
    denominator: str
    product_dtype: torch.dtype
    impl: str
    one_tile: bool
    keep: bool


class Problem(NamedTuple):
    """N anchors, the first rows of a contrast set of T rows.

    Attributes:
        z: `(T, D)`, fp32 or fp64; of unit length or not.
        inv_temperature: `1 / τ`, a scalar tensor.
        positives: the weights `w_ij` of N anchors over T rows.
        included: `(T,)` 1 for a row that takes part, 0 for an ignored one; None: all do.
        anchors: N.
        rows: the anchors to compute; a process of several computes its own.
        product_dtype: of the operands of the large products, where a backend has a choice.
    """

    z: Tensor
    inv_temperature: Tensor
    positives: Positives
    included: Tensor | None
    anchors: int
    rows: slice
    product_dtype: torch.dtype

    @classmethod
    def build(
        cls, z: Tensor, contrast: ContrastSet, inv_temperature: Tensor, options: Options
    ) -> "Problem":
        """Of the rows `z` that stand for those of the contrast set."""
        _, labels, mask, included = contrast
        included = None if included is None else included.to(z.dtype)
        return cls(
            z=z,
            inv_temperature=inv_temperature,
            positives=find_positives(z, labels, mask, included, options.anchors),
            included=included,
            anchors=options.anchors,
            rows=slice(options.first, options.last),
            product_dtype=options.product_dtype,
        )

    def weights(self, over: Over, rows: slice, cols: slice) -> Tensor | None:
        """`a_ij` in `log sum_j a_ij exp s_ij`, apart from self and ignored rows; None: all 1."""
        if over == "all":
            return None
        w = self.positives.tile(rows, cols)
        return w if over == "positives" else (w == 0).to(self.z.dtype)

    def attraction(self) -> Tensor:
        """`(n,)` for our rows: `z_i · sum_j w_ij z_j`, in O(T·D)."""
        return torch.linalg.vecdot(self.z[self.rows], self.positives.sum(self.z)[self.rows])

    def attraction_gradient(self, a: Tensor) -> Tensor:
        """`(T, D)`: of `sum_i a_i z_i · sum_j w_ij z_j`; for keys, the part of our rows."""
        gradient = self.positives.spread(a[:, None] * self.z[: self.anchors])
        if self.anchors < len(self.z):
            ours = torch.zeros_like(a)
            ours[self.rows] = a[self.rows]
            keys = slice(self.anchors, None)
            gradient[keys] = self.positives.spread(ours[:, None] * self.z[: self.anchors])[keys]
        gradient[: self.anchors].addcmul_(a[:, None], self.positives.sum(self.z))
        return gradient


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit length and the divisor of each; a zero row stays zero, without gradient."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    norm = torch.threshold(norm, 0.0, torch.inf)
    return x / norm, norm


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    return torch.is_autocast_enabled(x.device.type)


def outside_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Products in the dtype of their operands."""
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()
