"""Loss and gradient from functions that walk over tiles; shared by `tiled` and `triton`.

`log_sum_exp` and `pull` are those of `tiled`.

The positive term is linear in the similarities, so it needs no pairs:
`sum_i a_i z_i · sum_j w_ij z_j` and its gradient take O(T·D).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unmuddle.supcon.problem import Losses, Problem, Residuals

Function = Callable[..., Tensor]


def forward(
    x: Tensor, problem: Problem, log_sum_exp: Function, cache_size: Callable[[int, int], int]
) -> Losses:
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
    # NaN in, NaN out, also of rows that are in no loss.
    v = problem.denominator_weight
    nothing = 0 * (z.sum() if v is None else z.sum() + v.sum())
    each = torch.where(has_loss > 0, lse - numerator, nothing)
    return Losses(each, has_loss, (z, norm, torch.stack([lse, lse_positives]), cache))


def new_residuals(x: Tensor, problem: Problem, cache_size: Callable[[int, int], int]) -> Residuals:
    """Return memory of the shapes of what `forward` keeps, of one process."""
    options = problem.options
    lengths = len(x) if options.normalize else 0
    size = cache_size(options.anchors, len(x)) if options.needs_grad else 0
    shapes = [tuple(x.shape), (lengths, 1), (2, options.anchors), (size,)]
    return tuple(x.new_empty(shape, dtype=options.dtype) for shape in shapes)


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float, pull: Function
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `sum_i grad_i L_i` in x, of anchors our part, and in `1 / τ`."""
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
    dz[: problem.rows.start] = 0
    dz[problem.rows.stop : options.anchors] = 0
    return problem.gradients(dz, z, norm)


def attraction_gradient(z: Tensor, problem: Problem, a: Tensor) -> Tensor:
    """Return the gradient `(T, D)` of `sum_i a_i z_i · sum_j w_ij z_j`; of keys, our part."""
    anchors, positives = problem.options.anchors, problem.positives
    gradient = positives.spread(a[:, None] * z[:anchors])
    if anchors < len(z):
        ours = torch.zeros_like(a)
        ours[problem.rows] = a[problem.rows]
        gradient[anchors:] = positives.spread(ours[:, None] * z[:anchors])[anchors:]
    gradient[:anchors].addcmul_(a[:, None], positives.sum(z))
    return gradient
