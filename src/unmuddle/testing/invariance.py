"""Batch invariance: whether predictions depend on the batch they are made in."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmuddle.arm.features import eval_mode


class BatchInvariance(NamedTuple):
    """Largest absolute change of the outputs, over all samples, when the batch changes.

    A change is NaN if an output is NaN, and infinite if the model raises an error for the batch.

    Attributes:
        alone: each sample in a batch of its own.
        size: batches of 2 and of 3 samples.
        order: the same batch in another order.
        mates: the other samples in the batch replaced.
        scale: the largest absolute output, for comparison.
        worst: the largest of the changes, relative to `scale`.
    """

    alone: float
    size: float
    order: float
    mates: float
    scale: float

    @property
    def worst(self) -> float:
        """The largest of the changes, relative to `scale`."""
        return _largest(self[:4]) / max(self.scale, 1e-30)


@torch.no_grad()
def batch_invariance(model: nn.Module, x: Tensor, *, seed: int = 0) -> BatchInvariance:
    """Measure how much outputs in eval mode depend on the other samples, order and batch size.

    If a model predicts each sample independently, its outputs change by rounding errors at most:
    matrix products of one row and of many rows may sum in a different order. A larger change means
    that information leaks between samples. The accuracy on a test set that is sorted by class is
    then too high.

    Args:
        model: module that maps `(N, ...)` to `(N, ...)`. It is set to eval mode during the
            measurement, and restored afterwards.
        x: `(N, ...)` inputs, N at least 4.
        seed: seed of the random order.

    Raises:
        ValueError: there are fewer than 4 samples, or the model does not return one output per
            sample.
        TypeError: `model` is not an `nn.Module`.

    Examples:
        >>> x = torch.randn(8, 4)
        >>> batch_invariance(nn.Linear(4, 2), x).worst < 1e-6
        True
        >>> batch_invariance(nn.BatchNorm1d(4, track_running_stats=False), x).mates > 0.1
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if len(x) < 4:
        raise ValueError(f"x: expected at least 4 samples, got {len(x)}")
    with eval_mode(model):
        together = model(x.clone())
        if not isinstance(together, Tensor) or together.shape[:1] != x.shape[:1]:
            found = tuple(together.shape) if isinstance(together, Tensor) else type(together)
            raise ValueError(
                f"model: expected one output a sample, (N, ...) with N = {len(x)}, got {found}"
            )

        def change(batches: Iterable[Tensor], expected: Tensor) -> float:
            try:
                # Copies, because a model may modify its input in place.
                got = torch.cat([model(batch.clone()) for batch in batches])
            except Exception:  # such as batch normalisation of a single sample
                return math.inf
            return float((got[: len(expected)] - expected).abs().max())

        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator).to(x.device)
        half = len(x) // 2
        # Replace the other half of the batch by unusual samples: the same rows, times -3. Integer
        # inputs, such as ids, cannot be scaled, so the last one is repeated.
        far = -3 * x[half:] if x.is_floating_point() else x[-1:].expand_as(x[half:])
        strange = torch.cat([x[:half], far])
        return BatchInvariance(
            alone=change(x.split(1), together),
            size=_largest(change(x.split(size), together) for size in (2, 3)),
            order=change([x[order]], together[order]),
            mates=change([strange], together[:half]),
            scale=float(together.abs().max()),
        )


def _largest(changes: Iterable[float]) -> float:
    """Return the largest change; NaN if any is NaN."""
    return float(torch.tensor([*changes], dtype=torch.float64).max())
