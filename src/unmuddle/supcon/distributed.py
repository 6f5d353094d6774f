"""One contrast set for all processes, with gradients that are exact under averaging.

Every process holds all features after the forward and computes the rows of its own anchors. The
gradient of a row needs the log-sum-exp of every anchor, so those are exchanged in the forward too;
the backward communicates nothing. Gradients are multiplied by the number of processes, which
`DistributedDataParallel` divides by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

REFUSED = -1


@dataclass(frozen=True)
class Shard:
    """The part of one process.

    Attributes:
        sizes: rows of each process, in rank order.
        rank: of this process.
    """

    sizes: tuple[int, ...]
    rank: int

    @property
    def processes(self) -> int:
        """Their number."""
        return len(self.sizes)

    @property
    def first(self) -> int:
        """First of our rows."""
        return sum(self.sizes[: self.rank])

    @property
    def last(self) -> int:
        """First row behind ours."""
        return self.first + self.sizes[self.rank]

    def times(self, factor: int) -> "Shard":
        """The same with `factor` rows in place of each."""
        return Shard(tuple(size * factor for size in self.sizes), self.rank)

    def join(self, ours: Tensor) -> Tensor:
        """`(n, ...)` of each process to `(N, ...)`."""
        if not any(self.sizes):
            return ours
        padded = ours.new_zeros(max(self.sizes), *ours.shape[1:])
        padded[: len(ours)] = ours
        everyone = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, self.sizes, strict=True)])


def join_rows(rows: Tensor, shard: Shard) -> Tensor:
    """`Shard.join`; the backward gives our rows, times the number of processes."""
    return _JoinRows.apply(rows, shard)


class _JoinRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return shard.join(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shard: Shard = ctx.shard
        return grads[0][shard.first : shard.last] * shard.processes, None


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


Function = TypeVar("Function", bound=Callable[..., Tensor])


def gathers_outside_graphs(function: Function) -> Function:
    """With `gather=True` a call leaves `torch.compile`: no graph holds what processes exchange."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("gather") and torch.compiler.is_compiling():
            outside: Any = torch.compiler.disable(function)
            return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return cast(Function, call)


class Kind(NamedTuple):
    """What the batches of all processes must have in common.

    Attributes:
        views: V.
        dim: D.
        label_columns: C of soft labels, 0 for integer ones, -1 without labels.
        weighted: whether there are weights.
        keys: M.
        bits: of a feature.
    """

    views: int
    dim: int
    label_columns: int
    weighted: int
    keys: int
    bits: int


def share_out(size: int, kind: Kind, device: torch.device) -> Shard:
    """Tell the other processes how many samples we have, and of which kind.

    A process whose input is wrong says `REFUSED`, so that nobody waits for it in vain.
    """
    ours = torch.tensor([size, *kind], device=device)
    parts = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ours)
    sizes, kinds = zip(*((int(part[0]), Kind(*part[1:].tolist())) for part in parts), strict=True)
    if REFUSED in sizes and size != REFUSED:
        raise RuntimeError(f"gather: process {sizes.index(REFUSED)} refused its input")
    for process, other in enumerate(kinds):
        if other != kind and size != REFUSED:
            raise ValueError(f"gather: expected {kind} as here, got {other} on process {process}")
    return Shard(sizes, dist.get_rank())
