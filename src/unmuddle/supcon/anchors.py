"""`valid_anchors`: which anchors have a loss."""

import torch
from torch import Tensor

from unmuddle.supcon.inputs import Batch
from unmuddle.supcon.loss import ContrastMode, Denominator, check_options
from unmuddle.supcon.positives import find_positives

ROWS = 512  # anchors processed at once


@torch.no_grad()
def valid_anchors(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    key_weight: Tensor | None = None,
    weight: Tensor | None = None,
    denominator_weight: Tensor | None = None,
    contrast_mode: ContrastMode = "all",
    denominator: Denominator = "all",
    ignore_index: int = -100,
) -> Tensor:
    """Return a mask of the anchors that have a loss.

    A valid anchor has a positive, a term in the denominator, and a weight above 0.

    `supcon_loss(..., reduction="none")` is 0 for an anchor without a positive, which looks like a
    perfect loss. Apply this mask before averaging losses, such as those of a class, or logging
    them.

    Args:
        features: `(N, D)` or `(B, V, D)`, as passed to `supcon_loss`; the values are not used.
        labels: as passed to `supcon_loss`, like all arguments below.
        mask: `(B, B)` weights instead of labels.
        keys: `(M, D)` additional rows to contrast with.
        key_labels: labels of the keys.
        key_weight: `(M,)` weights of the keys in the denominator.
        weight: `(B,)` weights of the anchors' losses.
        denominator_weight: `(B,)` weights of the samples in the denominator.
        contrast_mode: `"all"` or `"one"`.
        denominator: `"all"` or `"negatives"`.
        ignore_index: label of ignored samples, which are never valid anchors.

    Returns:
        Boolean tensor with the shape of the losses for `reduction="none"`: `(N,)`, `(B, V)`, or
        `(B,)` with `contrast_mode="one"`.

    Raises:
        ValueError: a shape or an option is invalid.
        TypeError: see `supcon_loss`.

    Examples:
        >>> from unmuddle import supcon_loss
        >>> z, labels = torch.eye(3), torch.tensor([0, 0, 1])
        >>> valid_anchors(z, labels)
        tensor([ True,  True, False])
        >>> supcon_loss(z, labels, reduction="none")
        tensor([0.6931, 0.6931, 0.0000])
    """
    check_options(contrast_mode=contrast_mode, denominator=denominator)
    batch = Batch(features, labels, mask, weight, denominator_weight, keys, key_labels, key_weight)
    batch = batch.checked()
    x, row_labels, row_mask, included, of_terms, _ = batch.contrast_set(ignore_index)
    anchors = features.shape[:-1].numel()
    dtype = torch.promote_types(x.dtype, torch.float32)
    positives = find_positives(row_labels, row_mask, included, anchors, len(x), dtype)
    valid = positives.count() != 0  # True for NaN: undefined losses are not hidden
    if denominator == "negatives" or of_terms is not None:
        every = torch.arange(len(x), device=x.device)
        for start in range(0, anchors, ROWS):
            rows = slice(start, min(start + ROWS, anchors))
            is_term = every[rows, None] != every
            if denominator == "negatives":
                is_term &= positives.tile(rows, slice(None)) == 0
            for kept in (included, of_terms):
                if kept is not None:
                    is_term &= kept != 0
            valid[rows] &= is_term.any(1)
    if batch.weight is not None:
        valid = valid & (batch.weight != 0).repeat_interleave(batch.views)
    valid = valid.view(features.shape[:-1])
    return valid[:, 0] if features.ndim == 3 and contrast_mode == "one" else valid
