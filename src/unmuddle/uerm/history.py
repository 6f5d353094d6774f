"""Running means over epochs of a distribution for each of n samples.

Within an epoch, sums are kept as integers: what order, batches or processes they were made in
makes no difference to a single bit of them, while they are whole.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmuddle.uerm.distribution import Distribution
from unmuddle.uerm.processes import over_processes

UNIT = 2**16  # one, as an integer: 15 millionths are told apart, 32,767 ones fit into a sum
ROWS = 8192  # samples whose whole distributions a top-k history unfolds at once


class Folded(NamedTuple):
    """Running means with this epoch in them, not yet in place."""

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
        """Take in `(N, K)` distributions of samples `ids`; a row of NaN does not count."""
        self.total.index_add_(0, ids, _integers(distributions))

    def fold(self, momentum: float) -> Folded:
        """`mean <- momentum · mean + (1 - momentum) · this epoch's mean`, over all processes."""
        total = over_processes(self.total)
        mass = total.sum(1)
        mean = _moved(self.mean, total, mass, _rate(self.seen, mass, momentum))
        return Folded(Distribution(mean.to(self.mean.dtype)), self.seen + (mass > 0))

    def put(self, folded: Folded) -> None:
        """Put the new means in place and begin the next epoch."""
        self.mean.copy_(folded.mean.probabilities)
        self.seen.copy_(folded.seen)
        self.total.zero_()


class TopKHistory(nn.Module):
    """History of the k largest entries of each mean, for large K: 12 n k bytes.

    With float16 means it takes 10 n k bytes.

    What falls out of the k largest is forgotten, so the order in which a sample's predictions come
    can matter. `dtype` is that of the means.
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
        # All that this epoch's sums held before they were cut to k; and epochs seen before it.
        for name in ("mass", "seen"):
            self.register_buffer(name, torch.zeros(samples, dtype=torch.int32, device=device))

    def add(self, ids: Tensor, distributions: Tensor) -> None:
        """Take in `(N, K)` distributions of samples `ids`; a row of NaN does not count."""
        if not len(ids):
            return
        added = _integers(distributions)
        # Rows of one sample all get their common sum, so it does not matter which one is kept.
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
        """Put the new means in place and begin the next epoch."""
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
    """Weight of this epoch's mean: 1 when it is the first, 0 when there is none."""
    return torch.where(seen > 0, 1 - momentum, 1.0).float() * (mass > 0)


def _moved(old: Tensor, total: Tensor, mass: Tensor, rate: Tensor) -> Tensor:
    this_epoch = total / mass.clamp(min=1)[:, None]
    return old.float().lerp(this_epoch.float(), rate[:, None])


def _unfold(values: Tensor, classes: Tensor, size: int) -> Tensor:
    return values.new_zeros(len(values), size).scatter_(1, classes.long(), values)
