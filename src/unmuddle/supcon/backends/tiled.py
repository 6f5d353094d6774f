"""O(N·D) memory on any device: linear positive term, tiled log-sum-exp, symmetric gradient.

With `E_ij = exp(s_ij - m)` and `u_i = g_i exp(m - lse_i)`, the gradient of `sum_i g_i lse_i` is
`(1/τ) sum_j (u_i + u_j) E_ij z_j`: a symmetric weight matrix, so only tiles on and above the
diagonal are computed, forward and backward. The derivation is in the maths page of the docs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unmuddle.supcon.positives import Positives

TILE = 512
ONE_TILE = 1024  # up to here the N x N tile is kept for the backward: less work, at most 4 MB
SAFE_SPREAD = 80.0  # exp(-80) is still a normal fp32 number


def anchor_losses(
    z: Tensor, positives: Positives, included: Tensor, inv_temperature: Tensor
) -> Tensor:
    """`lse_i - z_i · (mean positive of i) / τ`, 0 where there is no positive."""
    count = positives.count()
    has_positive = count > 0
    function = _OneTile if len(z) <= ONE_TILE else _ManyTiles
    lse: Tensor = function.apply(z, included, inv_temperature)
    attraction = (z * positives.sum(z)).sum(1) * inv_temperature
    return torch.where(has_positive, lse - attraction / torch.where(has_positive, count, 1), 0)


class _OneTile(torch.autograd.Function):
    """`lse_i = log sum_{j != i} v_j exp s_ij`, keeping `exp(s_ij - max_j s_ij)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, included: Tensor, inv_temperature: Tensor) -> Tensor:
        s = (z * inv_temperature) @ z.T
        s.fill_diagonal_(-torch.inf)
        s += included.log()
        m = s.amax(1) if len(s) else s.sum(1)
        m = m.masked_fill(m == -torch.inf, 0)
        e = s.sub_(m[:, None]).exp_()
        total = e.sum(1)
        ctx.save_for_backward(z, inv_temperature, e, total)
        return m + total.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        _refuse_double_backward()
        z, inv_temperature, e, total = ctx.saved_tensors
        u = torch.where(total > 0, grads[0] / total, 0)
        w = u[:, None] * e
        return _gradients(z, (w + w.T) @ z, inv_temperature)


class _ManyTiles(torch.autograd.Function):
    """The same, tile by tile, keeping `lse` alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, included: Tensor, inv_temperature: Tensor) -> Tensor:
        x = z * inv_temperature
        bound = float((x * z).sum(1).amax())
        # One shift for all rows needs no running maximum, while no exponential can underflow.
        fixed_shift = 2 * bound < SAFE_SPREAD
        lse = (
            _lse_fixed_shift(x, z, included, bound)
            if fixed_shift
            else _lse_running_max(x, z, included)
        )
        ctx.save_for_backward(z, included, inv_temperature, lse)
        ctx.shift = bound if fixed_shift else None
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        _refuse_double_backward()
        z, included, inv_temperature, lse = ctx.saved_tensors
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        x = z * inv_temperature
        if ctx.shift is None:
            dz = _pull_running_max(x, z, included, grads[0], lse)
        else:
            dz = _pull_fixed_shift(x, z, included, grads[0] * (ctx.shift - lse).exp(), ctx.shift)
        return _gradients(z, dz, inv_temperature)


def _upper_tiles(n: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n, TILE):
        for j in range(i, n, TILE):
            yield slice(i, i + TILE), slice(j, j + TILE)


def _lse_fixed_shift(x: Tensor, z: Tensor, included: Tensor, shift: float) -> Tensor:
    total = torch.zeros_like(included)
    for rows, cols in _upper_tiles(len(z)):
        e = (x[rows] @ z[cols].T).sub_(shift).exp_()
        if rows == cols:
            e.fill_diagonal_(0)
        else:
            total[cols] += included[rows] @ e
        total[rows] += e @ included[cols]
    return shift + total.log()


def _lse_running_max(x: Tensor, z: Tensor, included: Tensor) -> Tensor:
    log_included = included.log()
    lse = torch.full_like(included, -torch.inf)
    for rows, cols in _upper_tiles(len(z)):
        s = x[rows] @ z[cols].T
        if rows == cols:
            s.fill_diagonal_(-torch.inf)
        else:
            lse[cols] = lse[cols].logaddexp((s + log_included[rows, None]).logsumexp(0))
        lse[rows] = lse[rows].logaddexp((s + log_included[cols]).logsumexp(1))
    return lse


def _pull_fixed_shift(x: Tensor, z: Tensor, included: Tensor, u: Tensor, shift: float) -> Tensor:
    """`sum_j (u_i v_j + v_i u_j) E_ij z_j` for every i."""
    left = torch.stack([u, included], 1)
    right = torch.stack([included, u])
    dz = torch.zeros_like(z)
    for rows, cols in _upper_tiles(len(z)):
        w = (x[rows] @ z[cols].T).sub_(shift).exp_().mul_(left[rows] @ right[:, cols])
        _pull(dz, z, w, rows, cols)
    return dz


def _pull_running_max(x: Tensor, z: Tensor, included: Tensor, g: Tensor, lse: Tensor) -> Tensor:
    """The same with each side's own shift: `u_i E_ij = g_i exp(s_ij - lse_i)`."""
    dz = torch.zeros_like(z)
    for rows, cols in _upper_tiles(len(z)):
        s = x[rows] @ z[cols].T
        # Only rows that take no part can exceed their neighbour's log-sum-exp; they weigh 0.
        by_row = (s - lse[rows, None]).clamp_(max=0).exp_().mul_(g[rows, None]).mul_(included[cols])
        by_col = (s - lse[cols]).clamp_(max=0).exp_().mul_(g[cols]).mul_(included[rows, None])
        _pull(dz, z, by_row.add_(by_col), rows, cols)
    return dz


def _pull(dz: Tensor, z: Tensor, w: Tensor, rows: slice, cols: slice) -> None:
    if rows == cols:
        w.fill_diagonal_(0)
    else:
        dz[cols].addmm_(w.T, z[rows])
    dz[rows].addmm_(w, z[cols])


def _gradients(z: Tensor, pull: Tensor, inv_temperature: Tensor) -> tuple[Tensor, None, Tensor]:
    # lse depends on z only through z·z/τ, so Euler's theorem gives the temperature's gradient.
    return pull * inv_temperature, None, (z * pull).sum() / 2


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "supcon_loss: impl='tiled' has no second derivative; use impl='reference' "
            "with create_graph=True"
        )
