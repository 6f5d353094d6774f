"""O(N·D) memory on any device: the pairs are visited in tiles, each pair of anchors once.

With `E_ij = exp s_ij` and `u_i = g_i / sum_j a_ij E_ij`, the gradient of `sum_i g_i lse_i` in
`s_ij` is `u_i a_ij E_ij`, so that of `z_i` is `(1/τ) sum_j (u_i a_ij + u_j a_ji) E_ij z_j`: one
weight for both ends of a pair. The derivation is in the maths page of the docs. Exponentials are
powers of two, several times as fast as `exp`.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from unmuddle.supcon.problem import Over, Problem

TILE = 512
# Similarities kept for the backward: up to 30 MB of fp32 where that is most of them, as at
# N = 4096; 16 MB of larger problems, which gain little.
KEPT, KEPT_OF_LARGE, LARGE = 15 * 2**19, 4 * 2**20, 9 * 2**20
SAFE_EXPONENT = 60.0  # 2 ** ±60 summed, inverted and weighed stays a normal fp32 number


def kept_size(n: int, total: int) -> int:
    """How many similarities of n rows with `total` are kept, at most."""
    pairs = n * (n + TILE) // 2 + n * (total - n)
    return min(pairs, KEPT) if pairs <= LARGE else KEPT_OF_LARGE


def log_sum_exp(problem: Problem, over: Over, kept: Tensor, *, is_filled: bool) -> Tensor:
    """`(n,)` for our rows: `log sum_j a_ij exp s_ij`, -inf where there is no term.

    `kept` is filled with the first tiles, or has been before.
    """
    blocks = _blocks(problem)
    if _is_bounded(problem):
        total = torch.zeros_like(problem.z[:, 0])
        sums = [total[block] for block in blocks]
        for r, c, s, is_new in _tiles(problem, blocks, kept, is_filled):
            rows, cols = blocks[r], blocks[c]
            e = s.exp2_() if is_new else s
            sums[r] += _weigh(e, problem.weights(over, rows, cols)).sum(1)
            if _is_mirrored(problem, rows, cols):
                sums[c] += _weigh(e.T, problem.weights(over, cols, rows)).sum(1)
        return total[problem.rows].log()

    lse = torch.full_like(problem.z[:, 0], -torch.inf)
    for r, c, s, _ in _tiles(problem, blocks, kept, is_filled):
        rows, cols = blocks[r], blocks[c]
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
    z, blocks = problem.z, _blocks(problem)
    none = z.new_zeros(len(z) - problem.anchors)  # keys are no anchors
    g = torch.cat([g, none]).unsqueeze(1)
    lse = torch.cat([lse.masked_fill(lse == -torch.inf, torch.inf), none + torch.inf]).unsqueeze(1)
    bounded = _is_bounded(problem)
    u, log2_sum = g * (-lse).exp(), lse / math.log(2)

    dz = torch.zeros_like(z)
    zs, dzs, us = ([x[block] for block in blocks] for x in (z, dz, u))
    scratch = z.new_empty(TILE * TILE)
    for r, c, s, is_new in _tiles(problem, blocks, kept, is_filled=True):
        rows, cols = blocks[r], blocks[c]
        there, back = problem.weights(over, rows, cols), problem.weights(over, cols, rows)
        w = scratch[: s.numel()].view(s.shape)
        if bounded:
            torch.add(_weigh(us[r], there), _weigh(us[c], back).T, out=w)
            w.mul_(s.exp2_() if is_new else s)
        else:
            by_row = (_add_log(s, there) - log2_sum[rows]).exp2_().mul_(g[rows])
            by_col = (_add_log(s.T, back) - log2_sum[cols]).exp2_().mul_(g[cols])
            torch.add(by_row, by_col.T, out=w)
        dzs[r].addmm_(w, zs[c])
        is_key = keys and cols.start >= problem.anchors
        if is_key or _is_mirrored(problem, rows, cols):
            dzs[c].addmm_(w.T, zs[r])
    return dz if a is None else dz.sub_(problem.attraction_gradient(a))


def _tiles(
    problem: Problem, blocks: list[slice], kept: Tensor, is_filled: bool
) -> Iterator[tuple[int, int, Tensor, bool]]:
    """Our anchors against all rows: `s_ij / ln 2` of two blocks, -inf for self and ignored rows.

    Two anchors of ours meet once, in a tile on or above the diagonal. The first tiles are views of
    `kept`, as they were left there if it `is_filled`; the others are new, in memory used again.
    """
    z, ours = problem.z, problem.rows
    scale = problem.inv_temperature / math.log(2)
    log_included = None if problem.included is None else problem.included.log()
    columns = [z[block].T for block in blocks]
    scratch, used = z.new_empty(TILE * TILE), 0
    for r, rows in enumerate(blocks):
        if not ours.start <= rows.start < ours.stop:
            continue
        x = z[rows] * scale
        for c, cols in enumerate(blocks):
            if ours.start <= cols.start < rows.start:
                continue  # the mirror of a tile above the diagonal
            shape = len(x), columns[c].shape[1]
            size = shape[0] * shape[1]
            is_kept = used + size <= len(kept)
            s = (kept[used : used + size] if is_kept else scratch[:size]).view(shape)
            used += size if is_kept else 0
            is_new = not (is_kept and is_filled)
            if is_new:
                torch.mm(x, columns[c], out=s)
                if r == c:
                    s.fill_diagonal_(-torch.inf)
                if log_included is not None:
                    s += log_included[rows, None]
                    s += log_included[cols]
            yield r, c, s, is_new
    if not is_filled:
        kept[used:] = 0


def _blocks(problem: Problem) -> list[slice]:
    """All rows, none of them partly ours or partly anchors."""
    ends = 0, problem.rows.start, problem.rows.stop, problem.anchors, len(problem.z)
    return [
        slice(begin, min(begin + TILE, stop))
        for start, stop in pairwise(ends)
        for begin in range(start, stop, TILE)
    ]


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
