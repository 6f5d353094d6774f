"""The tensors of one call: checked, joined over processes, laid out as one contrast set."""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.distributed import REFUSED, Kind, Shard, join_rows, share_out
from unmuddle.supcon.problem import ContrastSet


class Batch(NamedTuple):
    """Tensors of one call, see `supcon_loss`."""

    features: Tensor
    labels: Tensor | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None
    keys: Tensor | None = None
    key_labels: Tensor | None = None

    def views(self) -> int:
        """V."""
        return self.features.shape[1] if self.features.ndim == 3 else 1

    def checked(self) -> "Batch":
        """Return the tensors on one device and in few dtypes; raise if something does not fit."""
        features, labels, mask, weight, keys, key_labels = self
        _check_features(features)
        size, device = features.shape[0], features.device
        if mask is not None:
            if labels is not None:
                raise ValueError("labels, mask: give one of the two, not both")
            mask = torch.as_tensor(mask, device=device).detach()
            check_shape("mask", mask, (size, size), "(B, B)")
            _check_not_negative("mask", mask)
        elif labels is not None:
            labels = torch.as_tensor(labels, device=device)
            _check_labels("labels", labels, size, "B")
            labels = (
                labels.long() if labels.ndim == 1 else labels.detach().to(_result_type(features))
            )
        elif self.views() < 2:
            raise ValueError(
                "labels: without labels or a mask, positives are views of a sample, so features "
                f"must be (B, V, D) with V >= 2, got V = {self.views()}"
            )
        if weight is not None:
            weight = torch.as_tensor(weight, device=device)
            check_shape("weight", weight, (size,), "(B,)")
            weight = weight.detach().to(_result_type(features))
            _check_not_negative("weight", weight)
        if keys is not None:
            keys = torch.as_tensor(keys, device=device)
            if key_labels is not None:
                key_labels = torch.as_tensor(key_labels, device=device).detach()
            _check_keys(features, labels, keys, key_labels)
            if key_labels is not None and key_labels.ndim == 1:
                key_labels = key_labels.long()  # or ignore_index would not fit
        elif key_labels is not None:
            raise ValueError("key_labels: given without keys")
        return Batch(features, labels, mask, weight, keys, key_labels)

    def gathered(self) -> tuple["Batch", Shard]:
        """The checked batch of all processes, and which of its rows are ours."""
        size, kind, device = REFUSED, Kind(0, 0, 0, 0, 0, 0), torch.as_tensor(self.features).device
        try:
            batch = self.checked()
            if batch.mask is not None:
                raise ValueError("mask: not with gather=True, it knows one process; give labels")
            size, kind = len(batch.features), batch._kind()
        finally:
            shard = share_out(size, kind, device)
        return batch._joined(shard), shard.times(batch.views())

    def contrast_set(self, ignore_index: int) -> ContrastSet:
        """Rows of anchors, then keys."""
        x = self.features.flatten(0, 1) if self.features.ndim == 3 else self.features
        labels, included = self.labels, None
        if labels is None and self.mask is None:
            labels = torch.arange(len(self.features), device=x.device)
        elif labels is not None and not _surely_all(labels, ignore_index):
            included = _takes_part(labels, ignore_index)
        _check_memberships("labels", self.labels, ignore_index)
        _check_memberships("key_labels", self.key_labels, ignore_index)
        if self.views() > 1:
            labels = None if labels is None else labels.repeat_interleave(self.views(), 0)
            included = None if included is None else included.repeat_interleave(self.views())
        if self.keys is None:
            return ContrastSet(x, labels, self.mask, included)

        size = len(self.keys)
        if self.key_labels is not None:
            present = x.new_ones(len(x), dtype=torch.bool) if included is None else included
            included = torch.cat([present, _takes_part(self.key_labels, ignore_index)])
        if labels is not None:
            key_labels = labels.new_full((size,), -1)  # nobody's positives
            if self.labels is not None and self.key_labels is not None:
                key_labels = self.key_labels
            labels = torch.cat([labels, key_labels])
        return ContrastSet(torch.cat([x, self.keys.to(x)]), labels, self.mask, included)

    def _kind(self) -> Kind:
        labels = self.labels
        return Kind(
            views=self.views(),
            dim=self.features.shape[-1],
            label_columns=-1 if labels is None else 0 if labels.ndim == 1 else labels.shape[1],
            weighted=int(self.weight is not None),
            keys=0 if self.keys is None else len(self.keys),
            bits=torch.finfo(self.features.dtype).bits,
        )

    def _joined(self, shard: Shard) -> "Batch":
        features = join_rows(self.features, shard)
        labels = None if self.labels is None else join_rows(self.labels, shard)
        weight = None if self.weight is None else join_rows(self.weight, shard)
        return self._replace(features=features, labels=labels, weight=weight)


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], symbols: str) -> None:
    """Raise a ValueError that says what was expected and what was got."""
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {symbols} = {expected}, got {tuple(value.shape)}")


def _surely_all(labels: Tensor, ignore_index: int) -> bool:
    """Return whether a look at the labels, where it is cheap, finds none ignored."""
    return _is_cheap(labels) and labels.numel() > 0 and labels.min().item() > ignore_index


def _check_memberships(name: str, labels: Tensor | None, ignore_index: int) -> None:
    """Raise a ValueError if soft labels are negative, where a look at them is cheap."""
    if labels is None or labels.ndim != 2 or not _is_cheap(labels):
        return
    if bool(((labels < 0).any(1) & _takes_part(labels, ignore_index)).any()):
        raise ValueError(
            f"{name}: expected memberships of at least 0, got negative ones; give probabilities, "
            "not their logarithms"
        )


def _check_not_negative(name: str, values: Tensor) -> None:
    """Raise a ValueError if there are negative numbers, where a look at them is cheap."""
    if _is_cheap(values) and values.numel() and values.min().item() < 0:
        raise ValueError(f"{name}: expected numbers of at least 0, got {values.min().item()}")


def _is_cheap(labels: Tensor) -> bool:
    """Return whether reading the values costs no synchronisation."""
    return labels.is_cpu and not torch.compiler.is_compiling()


def _result_type(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _takes_part(labels: Tensor, ignore_index: int) -> Tensor:
    used = labels != ignore_index
    return used if labels.ndim == 1 else used.any(1)


def _check_features(features: Tensor) -> None:
    if features.ndim not in (2, 3):
        raise ValueError(
            f"features: expected shape (N, D) or (B, V, D), got {tuple(features.shape)}"
        )
    if not features.is_floating_point():
        raise TypeError(f"features: expected a floating-point type, got {features.dtype}")
    if features.ndim == 3 and features.shape[1] == 0:
        raise ValueError(f"features: expected at least one view, got {tuple(features.shape)}")


def _check_labels(name: str, labels: Tensor, size: int, symbol: str) -> None:
    if labels.ndim == 2 and len(labels) == size and labels.shape[1] == 1:
        raise ValueError(
            f"{name}: ({symbol}, 1) could be classes or memberships of one class; give classes as "
            f"({symbol},)"
        )
    if labels.ndim == 2:
        check_shape(name, labels, (size, labels.shape[1]), f"({symbol}, C)")
    else:
        check_shape(name, labels, (size,), f"({symbol},)")
    if labels.is_complex() or (labels.ndim == 1 and labels.is_floating_point()):
        raise TypeError(f"{name}: expected an integer type, got {labels.dtype}")


def _check_keys(
    features: Tensor, labels: Tensor | None, keys: Tensor, key_labels: Tensor | None
) -> None:
    dim = features.shape[-1]
    if keys.ndim != 2 or keys.shape[1] != dim:
        raise ValueError(f"keys: expected shape (M, D) with D = {dim}, got {tuple(keys.shape)}")
    if key_labels is None:
        if labels is not None:
            raise ValueError("key_labels: needed, because labels are given")
        return
    _check_labels("key_labels", key_labels, len(keys), "M")
    if labels is not None and labels.shape[1:] != key_labels.shape[1:]:
        raise ValueError(
            f"key_labels: expected shape (M, ...) = {(len(keys), *labels.shape[1:])} as labels "
            f"have, got {tuple(key_labels.shape)}"
        )
