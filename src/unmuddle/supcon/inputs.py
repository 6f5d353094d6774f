"""Validation and gathering of the tensors of one call, and their layout as a contrast set."""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.distributed import REFUSED, BatchSignature, Shard, join_rows, share_out
from unmuddle.supcon.problem import ContrastSet


class Batch(NamedTuple):
    """Tensor arguments of one call of `supcon_loss`."""

    features: Tensor
    labels: Tensor | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None
    denominator_weight: Tensor | None = None
    keys: Tensor | None = None
    key_labels: Tensor | None = None
    key_weight: Tensor | None = None

    @property
    def views(self) -> int:
        """Number of views V."""
        return self.features.shape[1] if self.features.ndim == 3 else 1

    def checked(self) -> "Batch":
        """Validate the tensors, and return them on one device and in a few common dtypes.

        Raises:
            ValueError: a shape or a value is invalid.
            TypeError: features are not floating point, or class labels are not integers.
        """
        features, labels, mask = self.features, self.labels, self.mask
        if not isinstance(features, Tensor):
            raise TypeError(f"features: expected a tensor, got {type(features).__name__}")
        shape = tuple(features.shape)
        if features.ndim not in (2, 3):
            raise ValueError(f"features: expected shape (N, D) or (B, V, D), got {shape}")
        if not features.is_floating_point():
            raise TypeError(f"features: expected a floating-point type, got {features.dtype}")
        if 0 in shape[1:]:
            raise ValueError(f"features: expected at least one view and one dimension, got {shape}")
        size = shape[0]
        if mask is not None:
            if labels is not None:
                raise ValueError("labels, mask: pass either labels or mask, not both")
            mask = _checked_weight("mask", mask, (size, size), "(B, B)", features)
        elif labels is not None:
            labels = torch.as_tensor(labels, device=features.device)
            _check_labels("labels", labels, size, "B")
            labels = labels.long() if labels.ndim == 1 else labels.detach().to(_dtype_of(features))
        elif self.views < 2:
            raise ValueError(
                "labels: without labels or a mask, positives are views of a sample, so features "
                f"must be (B, V, D) with V >= 2, got V = {self.views}"
            )
        weight, terms = self.weight, self.denominator_weight
        if weight is not None:
            weight = _checked_weight("weight", weight, (size,), "(B,)", features)
        if terms is not None:
            terms = _checked_weight("denominator_weight", terms, (size,), "(B,)", features)
        batch = Batch(features, labels, mask, weight, terms, *self[5:])
        if self.keys is not None:
            return batch._with_checked_keys(self.keys)
        for name in ("key_labels", "key_weight"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: given without keys")
        return batch

    def gathered(self) -> tuple["Batch", Shard]:
        """Return the validated batch of all processes, and the shard of this process."""
        device = torch.as_tensor(self.features).device
        size, signature = REFUSED, BatchSignature(0, 0, 0, 0, 0, 0, 0)
        try:
            batch = self.checked()
            if batch.mask is not None:
                raise ValueError("mask: not supported with gather=True; pass labels instead")
            size, signature = len(batch.features), batch._signature()
        finally:
            shard = share_out(size, signature, device)
        names = ("features", "labels", "weight", "denominator_weight")
        given = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
        rows = {name: join_rows(value, shard) for name, value in given.items()}
        return batch._replace(**rows), shard.times(batch.views)

    def contrast_set(self, ignore_index: int) -> ContrastSet:
        """Return the contrast set: first the rows of the anchors, then those of the keys."""
        x, views = self.features, 1
        if x.ndim == 3:
            x, views = x.flatten(0, 1), x.shape[1]
        labels, included, weight = self.labels, None, self.denominator_weight
        if labels is None and self.mask is None:
            labels = torch.arange(len(self.features), device=x.device)
        elif labels is not None:
            included = _takes_part("labels", labels, ignore_index)
        if views > 1:
            labels, included, weight = (
                None if t is None else t.repeat_interleave(views, 0)
                for t in (labels, included, weight)
            )
        if self.keys is None:
            return ContrastSet(x, labels, self.mask, included, weight)

        size, keys_included = len(self.keys), None
        if self.key_labels is not None:
            keys_included = _takes_part("key_labels", self.key_labels, ignore_index)
            included = _joined(included, keys_included, len(x), size)
        if labels is not None:
            key_labels = self.key_labels
            if self.labels is None or key_labels is None:  # never a positive: -2, ignored: -1
                key_labels = labels.new_full((size,), -2)
                if keys_included is not None:
                    key_labels.masked_fill_(~keys_included, -1)
            labels = torch.cat([labels, key_labels])
        weight = _joined(weight, self.key_weight, len(x), size)
        return ContrastSet(torch.cat([x, self.keys.to(x)]), labels, self.mask, included, weight)

    def _with_checked_keys(self, keys: Tensor) -> "Batch":
        key_labels, key_weight = self.key_labels, self.key_weight
        features, labels, dim = self.features, self.labels, self.features.shape[-1]
        if isinstance(keys, tuple | torch.nn.Module):
            raise TypeError(
                f"keys: expected a tensor, got {type(keys).__name__}; a queue has two: "
                "keys, key_labels = queue.keys()"
            )
        keys = torch.as_tensor(keys, device=features.device)
        if keys.ndim != 2 or keys.shape[1] != dim:
            raise ValueError(f"keys: expected shape (M, D) with D = {dim}, got {tuple(keys.shape)}")
        if key_weight is not None:
            key_weight = _checked_weight("key_weight", key_weight, (len(keys),), "(M,)", features)
        if key_labels is None:
            if labels is not None:
                raise ValueError("key_labels: required when labels are given")
            return self._replace(keys=keys, key_weight=key_weight)
        key_labels = torch.as_tensor(key_labels, device=features.device).detach()
        _check_labels("key_labels", key_labels, len(keys), "M")
        if labels is not None and labels.shape[1:] != key_labels.shape[1:]:
            raise ValueError(
                f"key_labels: expected shape (M, ...) = {(len(keys), *labels.shape[1:])} to match "
                f"labels, got {tuple(key_labels.shape)}"
            )
        if key_labels.ndim == 1:
            key_labels = key_labels.long()  # small integer types cannot hold ignore_index
        return self._replace(keys=keys, key_labels=key_labels, key_weight=key_weight)

    def _signature(self) -> BatchSignature:
        labels = self.labels
        return BatchSignature(
            views=self.views,
            dim=self.features.shape[-1],
            label_columns=-1 if labels is None else 0 if labels.ndim == 1 else labels.shape[1],
            weighted=int(self.weight is not None),
            denominator_weighted=int(self.denominator_weight is not None),
            keys=0 if self.keys is None else len(self.keys),
            bits=torch.finfo(self.features.dtype).bits,
        )


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], symbols: str) -> None:
    """Raise a ValueError that names both shapes, unless `value` has the expected shape."""
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {symbols} = {expected}, got {tuple(value.shape)}")


def _checked_weight(
    name: str, value: Tensor, shape: tuple[int, ...], symbols: str, features: Tensor
) -> Tensor:
    value = torch.as_tensor(value, device=features.device).detach().to(_dtype_of(features))
    check_shape(name, value, shape, symbols)
    if value.is_cpu and not torch.compiler.is_compiling() and (value < 0).any():
        raise ValueError(f"{name}: expected numbers of at least 0, got {value.min().item()}")
    return value


def _dtype_of(features: Tensor) -> torch.dtype:
    """Return the dtype of weights and soft labels: that of the features, but at least fp32."""
    return torch.promote_types(features.dtype, torch.float32)


def _check_labels(name: str, labels: Tensor, size: int, symbol: str) -> None:
    is_soft = labels.ndim == 2
    if is_soft and labels.shape == (size, 1):
        raise ValueError(
            f"{name}: ({symbol}, 1) could be classes or memberships of one class; give classes as "
            f"({symbol},)"
        )
    expected = (size, labels.shape[1]) if is_soft else (size,)
    check_shape(name, labels, expected, f"({symbol}, C)" if is_soft else f"({symbol},)")
    if labels.is_complex() or (not is_soft and labels.is_floating_point()):
        raise TypeError(f"{name}: expected an integer type, got {labels.dtype}")


def _joined(of_rows: Tensor | None, of_keys: Tensor | None, rows: int, keys: int) -> Tensor | None:
    """Concatenate the values of the rows and of the keys; None stands for all 1."""
    known = of_keys if of_rows is None else of_rows
    if known is None:
        return None
    of_rows = known.new_ones(rows) if of_rows is None else of_rows
    return torch.cat([of_rows, known.new_ones(keys) if of_keys is None else of_keys])


def _takes_part(name: str, labels: Tensor, ignore_index: int) -> Tensor | None:
    """Return a mask `(n,)` of rows that are not ignored, or None if all are known to be included.

    Raises:
        ValueError: a soft label is negative.
    """
    # On a CPU, reading the values needs no synchronisation.
    may_look = labels.is_cpu and not torch.compiler.is_compiling() and labels.numel() > 0
    if may_look:
        least = labels.min().item()
        if least > ignore_index and (labels.ndim == 1 or least >= 0):
            return None
    used = labels != ignore_index if labels.ndim == 1 else (labels != ignore_index).any(1)
    if may_look and labels.ndim == 2 and bool(((labels < 0).any(1) & used).any()):
        raise ValueError(
            f"{name}: expected memberships of at least 0, got negative ones; give probabilities, "
            "not their logarithms, and rows to ignore filled with the ignore_index of the loss"
        )
    return None if may_look and bool(used.all()) else used
