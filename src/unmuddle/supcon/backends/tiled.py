"""Backend with O(N·D) memory on any device: pairs are processed in tiles, pairs of anchors once.

Let `E_ij = exp s_ij` and `u_i = g_i / sum_j a_ij E_ij`. The gradient of `sum_i g_i lse_i` with
respect to `s_ij` is `u_i a_ij E_ij`. With respect to `z_i`, it is
`(1/τ) sum_j (u_i a_ij + u_j a_ji) E_ij z_j`, in which both rows of a pair have the same weight. The
maths page of the documentation derives this. Exponentials are computed as powers of two, which are
several times as fast as `exp`.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from unmuddle.supcon.problem import Losses, Over, Problem, Residuals

TILE = 512
# Number of similarities cached for the backward pass: up to 30 MB of fp32 if that is most of them,
# as at N = 4096, and 16 MB for larger problems, which gain little from the cache.
CACHE, CACHE_OF_LARGE, LARGE = 15 * 2**19, 4 * 2**20, 9 * 2**20
SAFE_EXPONENT = 60.0  # sums of 2 ** ±60, weighted or inverted, are normal fp32 numbers


def cache_size(n: int, total: int) -> int:
    """Return the maximum number of cached similarities of n rows with `total` rows."""
    pairs = n * (n + TILE) // 2 + n * (total - n)
    return min(pairs, CACHE) if pairs <= LARGE else CACHE_OF_LARGE


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of the anchors of this process."""
    z, norm = problem.unit_rows(x)
    rows, options = problem.rows, problem.options
    count = problem.positives.count()[rows]
    size = cache_size(rows.stop - rows.start, len(z)) if options.needs_grad else 0
    cache = z.new_empty(size)
    lse = log_sum_exp(z, problem, options.denominator, cache, is_filled=False)
    has_loss = ((count != 0) & (lse != -torch.inf)).to(z.dtype)
    if options.positives == "out":
        lse_positives = lse
        attraction = torch.linalg.vecdot(z[rows], problem.positives.sum(z)[rows])
        numerator = attraction * problem.inv_temperature / count
    else:
        lse_positives = log_sum_exp(z, problem, "positives", cache, is_filled=True)
        numerator = lse_positives - count.log()
    # Propagate NaN, even from rows that contribute to no loss.
    v = problem.denominator_weight
    nothing = 0 * (z.sum() if v is None else z.sum() + v.sum())
    each = torch.where(has_loss > 0, lse - numerator, nothing)
    return Losses(each, has_loss, (z, norm, torch.stack([lse, lse_positives]), cache))


def new_residuals(x: Tensor, problem: Problem) -> Residuals:
    """Return uninitialised residuals with the shapes that `forward` returns in one process."""
    options = problem.options
    lengths = len(x) if options.normalize else 0
    size = cache_size(options.anchors, len(x)) if options.needs_grad else 0
    shapes = [tuple(x.shape), (lengths, 1), (2, options.anchors), (size,)]
    return tuple(x.new_empty(shape, dtype=options.dtype) for shape in shapes)


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `sum_i grad_i L_i` with respect to x and, if needed, `1 / τ`.

    The gradient of x is 0 for anchors of other processes.
    """
    assert isinstance(grad, Tensor)
    (z, norm, lse, cache), options = residuals, problem.options
    grad = grad * problem.inv_temperature
    count = problem.positives.count()
    has_loss = (count != 0) & (lse[0] != -torch.inf)
    g = torch.where(has_loss, grad, 0)
    if options.positives == "out":
        a = torch.where(has_loss, grad / count, 0)
        dz = pull(z, problem, options.denominator, g, lse[0], a, cache)
    else:
        dz = pull(z, problem, options.denominator, g, lse[0], None, cache)
        dz -= pull(z, problem, "positives", g, lse[1], None, cache)
    return problem.gradients(problem.of_ours(dz), z, norm)


def log_sum_exp(
    z: Tensor, problem: Problem, over: Over, cache: Tensor, *, is_filled: bool
) -> Tensor:
    """Return `log sum_j a_ij exp s_ij` `(n,)` for the anchors of this process.

    The result is -inf for an anchor without terms. The function fills `cache` with similarities,
    or reads them from it if `is_filled`.
    """
    weights = _pair_weights(problem, over)
    if _is_bounded(z, problem):
        total = torch.zeros_like(z[:, 0])
        for rows, cols, e, is_new, is_mirrored in _tiles(z, problem, cache, is_filled):
            e = e.exp2_() if is_new else e
            total[rows].add_((e * weights(rows, cols) if weights else e).sum(1))
            if is_mirrored:
                total[cols].add_((e.T * weights(cols, rows) if weights else e.T).sum(1))
        return total[problem.rows].log()

    lse = torch.full_like(z[:, 0], -torch.inf)
    for rows, cols, s, _, is_mirrored in _tiles(z, problem, cache, is_filled):
        by_row = (s + weights(rows, cols).log2() if weights else s) * math.log(2)
        lse[rows] = lse[rows].logaddexp(by_row.logsumexp(1))
        if is_mirrored:
            by_col = (s.T + weights(cols, rows).log2() if weights else s.T) * math.log(2)
            lse[cols] = lse[cols].logaddexp(by_col.logsumexp(1))
    return lse[problem.rows]


def pull(
    z: Tensor, problem: Problem, over: Over, g: Tensor, lse: Tensor, a: Tensor | None, cache: Tensor
) -> Tensor:
    """Return τ times the gradient of `sum_i (g_i lse_i - a_i sum_j w_ij s_ij)` with respect to z.

    The second term is left out if `a` is None. The result is `(T, D)`.
    """
    weights, anchors = _pair_weights(problem, over), problem.options.anchors
    none = z.new_zeros(len(z) - anchors)  # keys are not anchors
    g = torch.cat([g, none]).unsqueeze(1)
    lse = torch.cat([lse.masked_fill(lse == -torch.inf, torch.inf), none + torch.inf]).unsqueeze(1)
    bounded = _is_bounded(z, problem)
    u, log2_sum = g * (-lse).exp(), lse / math.log(2)
    dz, scratch = torch.zeros_like(z), z.new_empty(TILE * TILE)
    for rows, cols, s, is_new, is_mirrored in _tiles(z, problem, cache, is_filled=True):
        w = scratch[: s.numel()].view(s.shape)
        if bounded:
            by_row = u[rows] * weights(rows, cols) if weights else u[rows]
            by_col = u[cols] * weights(cols, rows) if weights else u[cols]
            torch.add(by_row, by_col.T, out=w)
            w.mul_(s.exp2_() if is_new else s)
        else:
            by_row = s + weights(rows, cols).log2() if weights else s
            by_col = s.T + weights(cols, rows).log2() if weights else s.T
            by_row = (by_row - log2_sum[rows]).exp2_().mul_(g[rows])
            by_col = (by_col - log2_sum[cols]).exp2_().mul_(g[cols])
            torch.add(by_row, by_col.T, out=w)
        dz[rows].addmm_(w, z[cols])
        if is_mirrored or (cols.start >= anchors and problem.options.keys_need_grad):
            dz[cols].addmm_(w.T, z[rows])
    return dz if a is None else dz.sub_(problem.attraction_gradient(z, a))


def _tiles(
    z: Tensor, problem: Problem, cache: Tensor, is_filled: bool
) -> Iterator[tuple[slice, slice, Tensor, bool, bool]]:
    """Yield tiles of `s_ij / ln 2` between the anchors of this process and all rows.

    Entries of a row with itself and of ignored rows are -inf. Each pair of anchors of this process
    is in one tile, on or above the diagonal. A tile above the diagonal is mirrored: it also stands
    for its transpose below the diagonal. The first tiles are views of `cache`, and keep its
    contents if it `is_filled`. The other tiles are new, and share one buffer.

    Yields:
        Rows, columns, their tile, whether the tile is new, and whether it is mirrored.
    """
    ours = problem.rows
    scale = problem.inv_temperature / math.log(2)
    log_included = None if problem.included is None else problem.included.log()
    scratch, used = z.new_empty(TILE * TILE), 0
    # No block crosses the limits of this process's anchors, or the limit between anchors and keys.
    ends = 0, ours.start, ours.stop, problem.options.anchors, len(z)
    blocks = [
        slice(begin, min(begin + TILE, stop))
        for start, stop in pairwise(ends)
        for begin in range(start, stop, TILE)
    ]
    for rows in blocks:
        if not ours.start <= rows.start < ours.stop:
            continue
        x = z[rows] * scale
        for cols in blocks:
            is_ours = ours.start <= cols.start < ours.stop
            if is_ours and cols.start < rows.start:
                continue  # the transpose of a tile above the diagonal
            size = len(x) * (cols.stop - cols.start)
            is_cached = used + size <= len(cache)
            s = (cache[used : used + size] if is_cached else scratch[:size]).view(len(x), -1)
            used += size if is_cached else 0
            is_new = not (is_cached and is_filled)
            if is_new:
                torch.mm(x, z[cols].T, out=s)
                if rows == cols:
                    s.fill_diagonal_(-torch.inf)
                if log_included is not None:
                    s += log_included[rows, None]
                    s += log_included[cols]
            yield rows, cols, s, is_new, is_ours and rows != cols
    if not is_filled:
        cache[used:] = 0


def _pair_weights(problem: Problem, over: Over) -> Callable[[slice, slice], Tensor] | None:
    """Return a function that computes tiles of `a_ij`, or None if all `a_ij` are 1.

    The function does not account for self-pairs and ignored rows.
    """
    v, tile = problem.denominator_weight, problem.positives.tile
    if over == "positives":
        return tile
    if over == "negatives":
        return lambda rows, cols: (tile(rows, cols) == 0) * (1 if v is None else v[cols])
    return None if v is None else lambda _, cols: v[cols]


def _is_bounded(z: Tensor, problem: Problem) -> bool:
    """Return whether sums of `a_ij exp s_ij` need no running maximum."""
    exponent = (z * z).sum(1).amax() * problem.inv_temperature / math.log(2)
    v = problem.denominator_weight
    if v is not None:
        exponent = exponent + torch.where(v > 0, v, 1).log2().abs().amax()
    return bool(exponent < SAFE_EXPONENT)
