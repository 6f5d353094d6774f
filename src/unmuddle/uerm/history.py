"""Running means over epochs of a distribution for each of n samples.

Within an epoch, sums are kept as integers. Sums of all K entries are therefore bitwise independent
of the order of the predictions, of the batches, and of the number of processes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmuddle.uerm.distribution import Distribution
from unmuddle.uerm.processes import over_processes

UNIT = 2**16  # fixed-point 1: a resolution of 15 millionths, sums of up to 32,767 ones in int32
ROWS = 8192  # number of samples that a top-k history expands to all K entries at once


class Folded(NamedTuple):
    """Running means updated with the current epoch, but not yet stored."""

    mean: Distribution
    seen: Tensor


class DenseHistory(nn.Module):
    """History of all K entries of each mean: 8 n K bytes, 6 n K with float16 means."""

    mean: Tensor
    total: Tensor
    seen: Tensor

    def __init__(
        self, samples: int, size: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(samples, size, dtype=dtype, device=device))
        self.register_buffer("total", torch.zeros(samples, size, dtype=torch.int32, device=device))
        self.register_buffer("seen", torch.zeros(samples, dtype=torch.int32, device=device))

    def add(self, ids: Tensor, distributions: Tensor) -> None:
        """Add `(N, K)` distributions of samples `ids` to the sums; rows of NaN are skipped."""
        self.total.index_add_(0, ids, _integers(distributions))

    def fold(self, momentum: float) -> Folded:
        """`mean <- momentum · mean + (1 - momentum) · this epoch's mean`, over all processes."""
        total = over_processes(self.total)
        mass = total.sum(1)
        mean = _moved(self.mean, total, mass, _rate(self.seen, mass, momentum))
        return Folded(Distribution(mean.to(self.mean.dtype)), self.seen + (mass > 0))

    def put(self, folded: Folded) -> None:
        """Store the new means and start the next epoch."""
        self.mean.copy_(folded.mean.probabilities)
        self.seen.copy_(folded.seen)
        self.total.zero_()


class TopKHistory(nn.Module):
    """History of the k largest entries of each mean, for large K.

    It takes 12 n k bytes, or 10 n k bytes with float16 means. Entries that drop out of the k
    largest are forgotten, so the order of a sample's predictions can matter. `dtype` is the dtype
    of the means.
    """

    mean: Tensor
    classes: Tensor
    total: Tensor
    total_classes: Tensor
    mass: Tensor
    seen: Tensor

    def __init__(
        self,
        samples: int,
        size: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        index = torch.int16 if size <= 2**15 else torch.int32
        for name, kind in (
            ("mean", dtype),
            ("classes", index),
            ("total", torch.int32),
            ("total_classes", index),
        ):
            self.register_buffer(name, torch.zeros(samples, k, dtype=kind, device=device))
        # mass: this epoch's total before truncation to k entries; seen: past epochs with
        # predictions.
        for name in ("mass", "seen"):
            self.register_buffer(name, torch.zeros(samples, dtype=torch.int32, device=device))

    def add(self, ids: Tensor, distributions: Tensor) -> None:
        """Add `(N, K)` distributions of samples `ids` to the sums; rows of NaN are skipped."""
        if not len(ids):
            return
        added = _integers(distributions)
        # All rows of a sample get the same sum, so it does not matter which one is written last.
        first = (ids[:, None] == ids).int().argmax(1)
        common = torch.zeros_like(added).index_add_(0, first, added)[first]
        sums = _unfold(self.total[ids], self.total_classes[ids], self.size)
        top = (sums + common).topk(self.total.shape[1])
        self.total[ids] = top.values
        self.total_classes[ids] = top.indices.to(self.total_classes.dtype)
        self.mass.index_add_(0, ids, added.sum(1, dtype=torch.int32))

    def fold(self, momentum: float) -> Folded:
        """`mean <- momentum · mean + (1 - momentum) · this epoch's mean`, over all processes."""
        mass = over_processes(self.mass)
        rate = _rate(self.seen, mass, momentum)
        mean, classes = torch.empty_like(self.mean), torch.empty_like(self.classes)
        for start in range(0, len(mean), ROWS):
            rows = slice(start, start + ROWS)
            total = over_processes(_unfold(self.total[rows], self.total_classes[rows], self.size))
            old = _unfold(self.mean[rows].float(), self.classes[rows], self.size)
            top = _moved(old, total, mass[rows], rate[rows]).topk(mean.shape[1])
            mean[rows], classes[rows] = top.values.to(mean.dtype), top.indices.to(classes.dtype)
        return Folded(Distribution(mean, classes), self.seen + (mass > 0))

    def put(self, folded: Folded) -> None:
        """Store the new means and start the next epoch."""
        assert folded.mean.classes is not None
        self.mean.copy_(folded.mean.probabilities)
        self.classes.copy_(folded.mean.classes)
        self.seen.copy_(folded.seen)
        self.total.zero_()
        self.total_classes.zero_()
        self.mass.zero_()


def _integers(distributions: Tensor) -> Tensor:
    return (distributions * UNIT).nan_to_num_(0).round_().int()


def _rate(seen: Tensor, mass: Tensor, momentum: float) -> Tensor:
    """Return the weight of this epoch's mean: 1 if it is the first, 0 without predictions."""
    return torch.where(seen > 0, 1 - momentum, 1.0).float() * (mass > 0)


def _moved(old: Tensor, total: Tensor, mass: Tensor, rate: Tensor) -> Tensor:
    this_epoch = total / mass.clamp(min=1)[:, None]
    return old.float().lerp(this_epoch.float(), rate[:, None])


def _unfold(values: Tensor, classes: Tensor, size: int) -> Tensor:
    return values.new_zeros(len(values), size).scatter_(1, classes.long(), values)
