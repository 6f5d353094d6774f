"""Data that the steps of a call hand to each other."""

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
    dtype: torch.dtype
    positives: str
    denominator: Over
    product_dtype: torch.dtype
    impl: str
    needs_grad: bool
    keys_need_grad: bool
    temperature_needs_grad: bool


class Problem(NamedTuple):
    """Problem for a backend: losses of N anchors, the first of the rows `z` `(T, D)`.

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


Residuals = tuple[Tensor, ...]


class Losses(NamedTuple):
    """Result of a backend's forward pass for n anchors.

    Attributes:
        each: `(n,)` losses, 0 where an anchor has none.
        has_loss: `(n,)` 1 or 0; None if every anchor is known to have a loss.
        residuals: what the backward pass needs besides. Dense: derivatives `dL_i/ds_ij` `(N, T)`.
            Tiled, Triton: log-sum-exp over the denominator and the positives `(2, n)`; a cache.
    """

    each: Tensor
    has_loss: Tensor | None
    residuals: Residuals
