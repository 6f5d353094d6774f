"""O(N·D) memory on any device: the pairs are visited in tiles, each pair of anchors once.

With `E_ij = exp s_ij` and `u_i = g_i / sum_j a_ij E_ij`, the gradient of `sum_i g_i lse_i` in
`s_ij` is `u_i a_ij E_ij`, so that of `z_i` is `(1/τ) sum_j (u_i a_ij + u_j a_ji) E_ij z_j`: one
weight for both ends of a pair. The derivation is in the maths page of the docs. Exponentials are
powers of two, several times as fast as `exp`.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from unmuddle.supcon.problem import Over, Problem

TILE = 512
KEPT = 4 * 2**20  # similarities kept for the backward: 16 MB of fp32, whatever N
SAFE_EXPONENT = 60.0  # 2 ** ±60 summed, inverted and weighed stays a normal fp32 number


def kept_size(n: int, total: int) -> int:
    """How many similarities of n rows with `total` are kept, at most."""
    return min(n * (n + TILE) // 2 + n * (total - n), KEPT)


def log_sum_exp(problem: Problem, over: Over, kept: Tensor, *, is_filled: bool) -> Tensor:
    """`(n,)` for our rows: `log sum_j a_ij exp s_ij`, -inf where there is no term.

    `kept` is filled with the first tiles, or has been before.
    """
    if _is_bounded(problem):
        total = torch.zeros_like(problem.z[:, 0])
        for rows, cols, s, is_new in _tiles(problem, kept, is_filled):
            e = s.exp2_() if is_new else s
            total[rows] += _weigh(e, problem.weights(over, rows, cols)).sum(1)
            if _is_mirrored(problem, rows, cols):
                total[cols] += _weigh(e.T, problem.weights(over, cols, rows)).sum(1)
        return total[problem.rows].log()

    lse = torch.full_like(problem.z[:, 0], -torch.inf)
    for rows, cols, s, _ in _tiles(problem, kept, is_filled):
        by_row = _add_log(s, problem.weights(over, rows, cols)) * math.log(2)
        lse[rows] = lse[rows].logaddexp(by_row.logsumexp(1))
        if _is_mirrored(problem, rows, cols):
            by_col = _add_log(s.T, problem.weights(over, cols, rows)) * math.log(2)
            lse[cols] = lse[cols].logaddexp(by_col.logsumexp(1))
    return lse[problem.rows]


def pull(
    problem: Problem,
    over: Over,
    g: Tensor,
    lse: Tensor,
    a: Tensor | None,
    keys: bool,
    kept: Tensor,
) -> Tensor:
    """`(T, D)`: the gradient of `sum_i g_i lse_i - a_i s_i(positives)` in z, times τ."""
    z = problem.z
    none = z.new_zeros(len(z) - problem.anchors)  # keys are no anchors
    g = torch.cat([g, none])
    lse = torch.cat([lse.masked_fill(lse == -torch.inf, torch.inf), none + torch.inf])
    bounded = _is_bounded(problem)
    u, log2_sum = g * (-lse).exp(), lse / math.log(2)

    dz = torch.zeros_like(z)
    for rows, cols, s, is_new in _tiles(problem, kept, is_filled=True):
        there, back = problem.weights(over, rows, cols), problem.weights(over, cols, rows)
        if bounded:
            w = _weigh(u[rows, None], there) + _weigh(u[cols, None], back).T
            w.mul_(s.exp2_() if is_new else s)
        else:
            by_row = (_add_log(s, there) - log2_sum[rows, None]).exp2_().mul_(g[rows, None])
            by_col = (_add_log(s.T, back) - log2_sum[cols, None]).exp2_().mul_(g[cols, None])
            w = by_row.add_(by_col.T)
        dz[rows].addmm_(w, z[cols])
        is_key = keys and cols.start >= problem.anchors
        if is_key or _is_mirrored(problem, rows, cols):
            dz[cols].addmm_(w.T, z[rows])
    return dz if a is None else dz.sub_(problem.attraction_gradient(a))


def _tiles(
    problem: Problem, kept: Tensor, is_filled: bool
) -> Iterator[tuple[slice, slice, Tensor, bool]]:
    """Our anchors against all rows: `s_ij / ln 2`, -inf for self and ignored rows.

    Two anchors of ours meet once, in a tile on or above the diagonal. The first tiles are views of
    `kept`, as they were left there if it `is_filled`; the others are new, in memory used again.
    """
    z, ours = problem.z, problem.rows
    scale = problem.inv_temperature / math.log(2)
    log_included = None if problem.included is None else problem.included.log()
    scratch, used = z.new_empty(TILE * TILE), 0
    for rows in _blocks(ours.start, ours.stop):
        x = z[rows] * scale
        for cols in (
            *_blocks(0, ours.start),
            *_blocks(rows.start, ours.stop),
            *_blocks(ours.stop, problem.anchors),
            *_blocks(problem.anchors, len(z)),
        ):
            shape = rows.stop - rows.start, cols.stop - cols.start
            size = shape[0] * shape[1]
            is_kept = used + size <= len(kept)
            s = (kept[used : used + size] if is_kept else scratch[:size]).view(shape)
            used += size if is_kept else 0
            is_new = not (is_kept and is_filled)
            if is_new:
                torch.mm(x, z[cols].T, out=s)
                if rows == cols:
                    s.fill_diagonal_(-torch.inf)
                if log_included is not None:
                    s += log_included[rows, None]
                    s += log_included[cols]
            yield rows, cols, s, is_new
    if not is_filled:
        kept[used:] = 0


def _blocks(start: int, stop: int) -> Iterator[slice]:
    for begin in range(start, stop, TILE):
        yield slice(begin, min(begin + TILE, stop))


def _is_mirrored(problem: Problem, rows: slice, cols: slice) -> bool:
    return problem.rows.start <= cols.start < problem.rows.stop and rows != cols


def _is_bounded(problem: Problem) -> bool:
    """Whether `exp s_ij` needs no running maximum."""
    longest = (problem.z * problem.z).sum(1).amax() * problem.inv_temperature
    return bool(longest / math.log(2) < SAFE_EXPONENT)


def _weigh(e: Tensor, weights: Tensor | None) -> Tensor:
    return e if weights is None else e * weights


def _add_log(s: Tensor, weights: Tensor | None) -> Tensor:
    return s if weights is None else s + weights.log2()
