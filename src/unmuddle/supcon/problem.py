"""Data structures passed between the steps of a call, from contrast set to reduction."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.positives import Positives

MAX_KERNEL_DIM = 2048
Over = Literal["all", "negatives", "positives"]


class ContrastSet(NamedTuple):
    """Anchors and keys in one matrix, and the temperature.

    Attributes:
        x: `(T, D)` rows: first the N = B·V anchors, with the views of a sample in consecutive rows,
            then the keys.
        labels: `(T,)` int64 class labels or `(T, C)` soft labels, or None with a mask.
        mask: `(B, B)` or None.
        included: `(T,)` True for an included row, or None if all are included.
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
        anchors: number of anchors N. They are the first rows of the contrast set.
        normalize: scale rows to unit length.
        is_bounded: whether `|s_ij| / ln 2` is known to be at most 60, and all terms of the
            denominator have a weight of 1.
        ignore_index: label of ignored rows.
        dtype: dtype of the computation, fp32 or fp64.
        positives: "out" or "in".
        denominator: "all" or "negatives".
        product_dtype: dtype of the operands of large matrix products, if the backend has a choice.
        impl: "dense", "tiled", "triton" or "reference".
        needs_grad: whether there will be a backward pass.
        keys_need_grad: whether gradients of the keys are needed. The gradient of the temperature
            depends on them.
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
    """Problem for a backend: the losses of N anchors, which are the first rows of `x` `(T, D)`.

    Attributes:
        inv_temperature: `1 / τ`, a number or a scalar tensor.
        positives: weights `w_ij` of N anchors over T rows.
        included: `(T,)` 1 for an included row, 0 for an ignored row; None if all are included.
        denominator_weight: `(T,)` weights of the rows in the denominator; None if all are 1.
        rows: anchors to compute. In a distributed run, each process computes its own anchors.
        options: options of the evaluation.
    """

    inv_temperature: Tensor | float
    positives: Positives
    included: Tensor | None
    denominator_weight: Tensor | None
    rows: slice
    options: Options

    def unit_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows scaled to unit length, and their original lengths `(T, 1)`.

        Without normalisation, rows are not scaled and the lengths are `(0, 1)`.
        """
        z = x if x.dtype == self.options.dtype else x.to(self.options.dtype)
        if not self.options.normalize:
            return z, z.new_empty(0, 1)
        # A zero row stays zero and gets no gradient.
        norm = torch.threshold(torch.linalg.vector_norm(z, dim=1, keepdim=True), 0.0, torch.inf)
        return z / norm, norm

    def gradients(self, dz: Tensor, z: Tensor, norm: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and, if needed, `1 / τ`, given that of the unit rows."""
        options, dt = self.options, None
        if options.normalize or options.temperature_needs_grad:
            along = (z * dz).sum(1, keepdim=True)
            if options.temperature_needs_grad:
                # Euler's theorem: the losses depend on z and τ only through z_i · z_j / τ.
                dt = along.sum() / (2 * self.inv_temperature)
            if options.normalize:
                dz.addcmul_(z, along, value=-1).div_(norm)
        return dz, dt

    def attraction_gradient(self, z: Tensor, a: Tensor) -> Tensor:
        """Return the gradient `(T, D)` of `sum_i a_i z_i · sum_j w_ij z_j`.

        Gradients of keys contain only the contribution of this process.
        """
        anchors, positives, ours = self.options.anchors, self.positives, self.rows
        gradient = positives.spread(a[:, None] * z[:anchors])
        if anchors < len(z):
            of_ours = torch.zeros_like(a)
            of_ours[ours] = a[ours]
            gradient[anchors:] = positives.spread(of_ours[:, None] * z[:anchors])[anchors:]
        gradient[:anchors].addcmul_(a[:, None], positives.sum(z))
        return gradient

    def of_ours(self, gradient: Tensor) -> Tensor:
        """Set the gradients of the anchors of other processes to 0, and return the result."""
        if self.rows != slice(0, self.options.anchors):
            gradient[: self.rows.start] = 0
            gradient[self.rows.stop : self.options.anchors] = 0
        return gradient


Residuals = tuple[Tensor, ...]


class Losses(NamedTuple):
    """Result of a backend's forward pass for n anchors.

    Attributes:
        each: `(n,)` losses, 0 for an anchor without a loss.
        has_loss: `(n,)` 1 or 0; None if every anchor is known to have a loss.
        residuals: tensors for the backward pass. The first two are the unit rows and their original
            lengths. The others are, for dense, derivatives `dL_i/ds_ij` `(N, T)`; for tiled, the
            log-sum-exp over the denominator and over the positives `(2, n)`, and a cache; for
            Triton, two numbers per anchor `(2, n)`, and the order of the rows.
    """

    each: Tensor
    has_loss: Tensor | None
    residuals: Residuals


class Reduction(NamedTuple):
    """Weighted mean, weighted sum, or weighted losses of N anchors.

    Attributes:
        kind: "mean", "sum" or "none".
        included: `(N,)` True for an included anchor, or None if all are included.
        weight: `(B,)` weights of the samples, or None.
        views: number of views V.
        first_view_only: whether only the first view of each sample is an anchor.
        counts_zeros: whether anchors without a loss count as losses of 0 instead of being skipped.
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
