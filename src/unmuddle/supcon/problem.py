"""Records that the steps of a call hand to each other, from contrast set to reduction."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.positives import Positives

MAX_KERNEL_DIM = 2048
Over = Literal["all", "negatives", "positives"]


class ContrastSet(NamedTuple):
    """Anchors and keys in one matrix, and the temperature.

    Attributes:
        x: `(T, D)`: the N = B·V anchors, the views of a sample side by side, then the keys.
        labels: `(T,)` int64 classes or `(T, C)` memberships, or None with a mask.
        mask: `(B, B)` or None.
        included: `(T,)` whether a row takes part, or None if all do.
        denominator_weight: `(T,)` weights of the rows in the denominator, or None if all are 1.
        inv_temperature: `1 / τ`, a number or a scalar tensor.
    """

    x: Tensor
    labels: Tensor | None
    mask: Tensor | None
    included: Tensor | None
    denominator_weight: Tensor | None
    inv_temperature: Tensor | float = 1.0


class Options(NamedTuple):
    """Options of one evaluation of the loss.

    Attributes:
        anchors: N, the first rows of the contrast set.
        normalize: scale rows to unit length.
        is_bounded: every similarity is known to be at most 60 bits, and sums have weights of 1.
        ignore_index: label of rows that take no part.
        dtype: fp32 or fp64, in which the loss is computed.
        positives: "out" or "in".
        denominator: "all" or "negatives".
        product_dtype: of the operands of the large products, where the backend has a choice.
        impl: "dense", "tiled", "triton" or "reference".
        needs_grad: whether there will be a backward pass.
        keys_need_grad: whether keys need a gradient; that of the temperature needs it too.
        temperature_needs_grad: whether the temperature needs a gradient.
    """

    anchors: int
    normalize: bool
    is_bounded: bool
    ignore_index: int
    dtype: torch.dtype
    positives: str
    denominator: Over
    product_dtype: torch.dtype
    impl: str
    needs_grad: bool
    keys_need_grad: bool
    temperature_needs_grad: bool


class Problem(NamedTuple):
    """Problem for a backend: losses of N anchors, the first of the rows `x` `(T, D)`.

    Attributes:
        inv_temperature: `1 / τ`, a number or a scalar tensor.
        positives: weights `w_ij` of N anchors over T rows.
        included: `(T,)` 1 for a row that takes part, 0 for an ignored one; None: all do.
        denominator_weight: `(T,)` weights of the rows in the denominator; None: all are 1.
        rows: the anchors to compute; of several processes, each computes its own.
        options: of the evaluation.
    """

    inv_temperature: Tensor | float
    positives: Positives
    included: Tensor | None
    denominator_weight: Tensor | None
    rows: slice
    options: Options

    def unit_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows of unit length and their lengths before, `(T, 1)`; else `(0, 1)`."""
        z = x if x.dtype == self.options.dtype else x.to(self.options.dtype)
        if not self.options.normalize:
            return z, z.new_empty(0, 1)
        # A zero row stays zero and gets no gradient.
        norm = torch.threshold(torch.linalg.vector_norm(z, dim=1, keepdim=True), 0.0, torch.inf)
        return z / norm, norm

    def gradients(self, dz: Tensor, z: Tensor, norm: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and, if needed, of `1 / τ`, from that of the unit rows."""
        options, dt = self.options, None
        if options.normalize or options.temperature_needs_grad:
            along = (z * dz).sum(1, keepdim=True)
            if options.temperature_needs_grad:
                # The losses depend on z only through z·z/τ: Euler's theorem.
                dt = along.sum() / (2 * self.inv_temperature)
            if options.normalize:
                dz.addcmul_(z, along, value=-1).div_(norm)
        return dz, dt

    def attraction_gradient(self, z: Tensor, a: Tensor) -> Tensor:
        """Return the gradient `(T, D)` of `sum_i a_i z_i · sum_j w_ij z_j`; of keys, our part."""
        anchors, positives, ours = self.options.anchors, self.positives, self.rows
        gradient = positives.spread(a[:, None] * z[:anchors])
        if anchors < len(z):
            of_ours = torch.zeros_like(a)
            of_ours[ours] = a[ours]
            gradient[anchors:] = positives.spread(of_ours[:, None] * z[:anchors])[anchors:]
        gradient[:anchors].addcmul_(a[:, None], positives.sum(z))
        return gradient

    def of_ours(self, gradient: Tensor) -> Tensor:
        """Set the gradient of the anchors of other processes to 0."""
        if self.rows != slice(0, self.options.anchors):
            gradient[: self.rows.start] = 0
            gradient[self.rows.stop : self.options.anchors] = 0
        return gradient


Residuals = tuple[Tensor, ...]


class Losses(NamedTuple):
    """Result of a backend's forward pass for n anchors.

    Attributes:
        each: `(n,)` losses, 0 where an anchor has none.
        has_loss: `(n,)` 1 or 0; None if every anchor is known to have a loss.
        residuals: what the backward pass needs besides: unit rows, their lengths before, and
            (dense) derivatives `dL_i/ds_ij` `(N, T)`, (tiled) log-sum-exp over the denominator
            and the positives `(2, n)` and a cache, or (Triton) two numbers of each anchor `(2, n)`
            and the places of the rows.
    """

    each: Tensor
    has_loss: Tensor | None
    residuals: Residuals


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
            weights = weights / total.clamp_min(torch.finfo(total.dtype).tiny)
        return (losses * weights if self.kind == "none" else torch.dot(losses, weights)), weights
