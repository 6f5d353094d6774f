"""`supcon_loss`: the contract. Shapes, validation, choice of backend, reduction."""

from importlib import import_module
from typing import Literal, get_args

import torch
from torch import Tensor

from unmuddle.supcon.positives import ClassPositives, MaskPositives, Positives

ContrastMode = Literal["all", "one"]
NoPositive = Literal["skip", "zero"]
Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "reference", "tiled"]


def supcon_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    contrast_mode: ContrastMode = "all",
    normalize: bool = True,
    no_positive: NoPositive = "skip",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    base_temperature: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Supervised contrastive loss, `L_out` of Khosla et al. 2020.

    For rows `z_i` of unit length, `s_ij = z_i · z_j / τ`, all other rows `A(i)` and positives
    `P(i)` (rows of the same class, or other views of the same sample):

        L_i = log sum_{a in A(i)} exp s_ia - 1/|P(i)| sum_{p in P(i)} s_ip

    Args:
        features: `(N, D)` embeddings, or `(B, V, D)`: V views of each of B samples, N = B·V rows.
        labels: `(N,)` or `(B,)` integer classes. `None` with no mask: the views of one sample are
            its positives (SimCLR).
        mask: `(B, B)` non-negative weights instead of labels; `mask[i, j]` is how much sample j is
            a positive of sample i. Need not be symmetric. Excludes `labels`.
        temperature: `τ > 0`; a scalar tensor may require a gradient (its value is not checked).
        contrast_mode: `"all"`: every row is an anchor; `"one"`: the first view of each sample is.
        normalize: scale rows to unit length; a zero row stays zero and gets a zero gradient.
        no_positive: anchors without a positive are left out of the mean (`"skip"`) or count as 0
            (`"zero"`).
        ignore_index: samples of this label take no part: no anchor, positive or negative.
        reduction: `"mean"`, `"sum"`, or `"none"`: `(N,)` for `(N, D)` features, `(B, V)` for
            `(B, V, D)`, `(B,)` with `contrast_mode="one"`.
        base_temperature: if given, the loss is multiplied by `τ / base_temperature`.
        impl: `"reference"` (dense, differentiable twice), `"tiled"` (O(N·D) memory), or `"auto"`,
            which `choose_impl` resolves.

    Returns:
        The loss in fp32 (fp64 for fp64 features). 0 with zero gradient when no anchor has a
        positive. NaN in gives NaN out.

    Raises:
        ValueError: a shape or an option does not fit.
        TypeError: `features` is not floating point, or `labels` is not of an integer type.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(supcon_loss(z, torch.tensor([0, 0, 1, 1]), temperature=1.0).item(), 4)
        0.5514

    References:
        Khosla et al., Supervised Contrastive Learning, 2020, arXiv 2004.11362, Eq. 2.
    """
    check_options(temperature, contrast_mode, no_positive, reduction, base_temperature, impl)
    batch, views = _check_features(features)
    backend = import_module(f"unmuddle.supcon.backends.{choose_impl(impl)}").anchor_losses

    # Half precision enters here and fp32 leaves, also under autocast.
    with torch.autocast(features.device.type, enabled=False):
        z = features.flatten(0, -2).to(torch.promote_types(features.dtype, torch.float32))
        if normalize:
            z = _unit_rows(z)
        inv_temperature = 1 / torch.as_tensor(temperature, dtype=z.dtype, device=z.device)

        positives, included = _positives(z, labels, mask, batch, views, ignore_index)
        losses = backend(z, positives, included, inv_temperature)
        # NaN in, NaN out, and a graph, even where there is no anchor.
        losses = losses + 0 * (z.sum() + positives.count().sum())
        if base_temperature is not None:
            losses = losses / (inv_temperature * base_temperature)

        is_anchor = positives.count() > 0 if no_positive == "skip" else included > 0
        if features.ndim == 3:
            losses, is_anchor = (
                losses.unflatten(0, (batch, views)),
                is_anchor.unflatten(0, (batch, views)),
            )
            if contrast_mode == "one":
                losses, is_anchor = losses[:, 0], is_anchor[:, 0]
        if reduction == "none":
            return losses
        if reduction == "sum":
            return losses.sum()
        return losses.sum() / is_anchor.sum().clamp(min=1)


def choose_impl(impl: Impl = "auto") -> str:
    """The backend that `impl` stands for: an explicit name is never replaced by another.

    Examples:
        >>> choose_impl("auto")
        'tiled'
    """
    _check_choice("impl", impl, get_args(Impl))
    return "tiled" if impl == "auto" else impl


def _unit_rows(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, torch.inf)


def _positives(
    z: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    batch: int,
    views: int,
    ignore_index: int,
) -> tuple[Positives, Tensor]:
    everyone = z.new_ones(len(z))
    if mask is not None:
        if labels is not None:
            raise ValueError("labels, mask: give one of the two, not both")
        mask = torch.as_tensor(mask)
        _check_shape("mask", mask, (batch, batch), "(B, B)")
        return MaskPositives(mask.to(z), views), everyone
    if labels is None:
        if views < 2:
            raise ValueError(
                "labels: without labels or a mask, positives are views of a sample, so features "
                f"must be (B, V, D) with V >= 2, got V = {views}"
            )
        labels = torch.arange(batch, device=z.device)
        included = everyone
    else:
        labels = torch.as_tensor(labels)
        _check_shape("labels", labels, (batch,), "(B,)")
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels: expected an integer type, got {labels.dtype}")
        labels = labels.to(z.device, torch.int64)
        included = (labels != ignore_index).to(z.dtype).repeat_interleave(views)
    return ClassPositives.from_labels(labels.repeat_interleave(views), included), included


def _check_features(features: Tensor) -> tuple[int, int]:
    if features.ndim not in (2, 3):
        raise ValueError(
            f"features: expected shape (N, D) or (B, V, D), got {tuple(features.shape)}"
        )
    if not features.is_floating_point():
        raise TypeError(f"features: expected a floating-point type, got {features.dtype}")
    if features.ndim == 3 and features.shape[1] == 0:
        raise ValueError(f"features: expected at least one view, got {tuple(features.shape)}")
    return features.shape[0], features.shape[1] if features.ndim == 3 else 1


def _check_shape(name: str, value: Tensor, expected: tuple[int, ...], symbols: str) -> None:
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {symbols} = {expected}, got {tuple(value.shape)}")


def check_options(
    temperature: float | Tensor,
    contrast_mode: str,
    no_positive: str,
    reduction: str,
    base_temperature: float | None,
    impl: str,
) -> None:
    """Raise a ValueError that names the first option out of its range."""
    _check_choice("contrast_mode", contrast_mode, get_args(ContrastMode))
    _check_choice("no_positive", no_positive, get_args(NoPositive))
    _check_choice("reduction", reduction, get_args(Reduction))
    _check_choice("impl", impl, get_args(Impl))
    if isinstance(temperature, Tensor):
        _check_shape("temperature", temperature, (), "()")
    elif not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if base_temperature is not None and not base_temperature > 0:
        raise ValueError(f"base_temperature: expected a positive number, got {base_temperature}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
