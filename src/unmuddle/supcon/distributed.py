"""Gathering of one contrast set over all processes; averaged gradients are exact.

In the forward pass, every process gathers all features and computes the rows of its own anchors.
The gradient of a row needs the log-sum-exp of every anchor, so these are exchanged in the forward
pass, too. The backward pass needs no communication. Gradients are multiplied by the number of
processes, since `DistributedDataParallel` divides by it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from unmuddle.supcon.problem import Losses

REFUSED = -1


@dataclass(frozen=True)
class Shard:
    """Rows of the gathered batch that belong to this process.

    Attributes:
        sizes: number of rows of each process, in rank order.
        rank: rank of this process.
    """

    sizes: tuple[int, ...]
    rank: int

    @property
    def rows(self) -> slice:
        """Rows of this process."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    def times(self, factor: int) -> "Shard":
        """Return the shard with each row replaced by `factor` rows."""
        return Shard(tuple(size * factor for size in self.sizes), self.rank)

    def join(self, ours: Tensor) -> Tensor:
        """Concatenate the tensors `(n, ...)` of all processes to `(N, ...)`."""
        if not any(self.sizes):
            return ours
        padded = ours.new_zeros(max(self.sizes), *ours.shape[1:])
        padded[: len(ours)] = ours
        everyone = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, self.sizes, strict=True)])

    def join_losses(self, ours: Losses) -> Losses:
        """Concatenate the losses and residuals of the anchors of all processes."""
        z, norm, kept, rest = ours.residuals
        assert ours.has_loss is not None
        joined = self.join(torch.stack([ours.each, ours.has_loss, *kept], 1)).T.contiguous()
        return Losses(joined[0], joined[1], (z, norm, joined[2:], rest))


class _JoinRows(torch.autograd.Function):
    """`Shard.join`, whose backward returns this process's rows times the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return shard.join(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shard: Shard = ctx.shard
        return grads[0][shard.rows] * len(shard.sizes), None


join_rows = _JoinRows.apply


class BatchSignature(NamedTuple):
    """Properties that the batches of all processes must share.

    Attributes:
        views: number of views V.
        dim: feature dimension D.
        label_columns: C for soft labels, 0 for integer labels, -1 without labels.
        weighted: whether anchors have weights.
        denominator_weighted: whether the denominator has weights.
        keys: number of keys M.
        bits: bits per feature value.
    """

    views: int
    dim: int
    label_columns: int
    weighted: int
    denominator_weighted: int
    keys: int
    bits: int


def share_out(size: int, signature: BatchSignature, device: torch.device) -> Shard:
    """Exchange batch sizes and signatures; a process whose input is invalid sends `REFUSED`."""
    ours = torch.tensor([size, *signature], device=device)
    parts = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ours)
    sizes = tuple(int(part[0]) for part in parts)
    if size != REFUSED and REFUSED in sizes:
        raise RuntimeError(f"gather: process {sizes.index(REFUSED)} refused its input")
    for process, part in enumerate(parts):
        other = BatchSignature(*part[1:].tolist())
        if size != REFUSED and other != signature:
            differences = ", ".join(
                f"{name} {here} here, {there} in process {process}"
                for name, here, there in zip(signature._fields, signature, other, strict=True)
                if here != there
            )
            raise ValueError(
                f"gather: the processes have batches of different kinds: {differences}"
            )
    return Shard(sizes, dist.get_rank())
