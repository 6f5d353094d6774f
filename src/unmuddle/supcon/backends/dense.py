"""Backend for small batches, which computes all N x T pairs at once.

The forward pass keeps `dL_i/ds_ij` for the backward pass. This takes fewer operations than tiles,
and each derivative is rounded only once, as in eager mode.
"""

import torch
from torch import Tensor

from unmuddle.supcon.problem import Losses, Problem, Residuals

MAX_PAIRS = 512**2  # 1 MB of fp32 derivatives; with more pairs, tiles are faster
# 16 MB. This limit was measured against earlier kernels, which took about a hundred operations. The
# current kernels take fewer operations than this backend.
MAX_PAIRS_GPU = 2048**2


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of all anchors."""
    z, norm = problem.unit_rows(x)
    options, v = problem.options, problem.denominator_weight
    n, is_compiling = options.anchors, torch.compiler.is_compiling()
    lowest = torch.finfo(z.dtype).min / 2  # finite, since 0 * -inf would be NaN
    w = problem.positives.tile(problem.rows, slice(0, len(z)))
    s = _product(z if n == z.shape[0] else z[:n], z.t(), problem.inv_temperature, like=w)
    # Under torch.compile, fill_diagonal_ makes the size static. In eager mode, it is faster.
    s.diagonal().fill_(lowest) if is_compiling else s.fill_diagonal_(lowest)
    if problem.included is not None:
        s.masked_fill_(problem.included == 0, lowest)
    w.diagonal().fill_(0) if is_compiling else w.fill_diagonal_(0)
    count = w.sum(1, keepdim=True)

    others, has_loss = s, count
    if options.denominator == "negatives":
        others = others.masked_fill(w != 0, lowest)
    if v is not None:
        others = others + v.log().clamp_(min=lowest)
    if others is s:
        log_p = s.log_softmax(1)
    else:
        lse = others.logsumexp(1, keepdim=True)  # near `lowest`, but finite, without a term
        has_loss = count.masked_fill(lse <= lowest / 2, 0)
        log_p = s - lse

    # On a CPU, reading the values needs no synchronisation, and often shows that g is not needed.
    may_look = z.is_cpu and n > 0 and not is_compiling
    g = None if may_look and has_loss.min().item() > 0 else has_loss.sign()
    divisor = count if g is None else count.clamp_min(torch.finfo(z.dtype).tiny)
    if options.positives == "in":
        shares = log_p + w.log_().clamp_(min=lowest)
        each = divisor.log().squeeze(1) - shares.logsumexp(1)
        derivative = others.softmax(1).sub_(shares.softmax(1))
    else:
        attraction = w.div_(-divisor)
        if others is s:
            attraction = attraction if g is None else attraction.mul_(g)
            # attraction_ij - exp(log_p_ij) * sum_k attraction_ik
            derivative = torch._log_softmax_backward_data(attraction, log_p, 1, z.dtype)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        else:
            derivative = others.softmax(1).add_(attraction)
        each = log_p.mul_(attraction).sum(1)
    if g is None:
        return Losses(each, None, (z, norm, derivative))
    if options.positives == "in" or others is not s:
        derivative.mul_(g)
    g = g.squeeze(1)
    return Losses(each.mul_(g), g, (z, norm, derivative))


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `sum_i grad_i L_i` with respect to x and, if needed, `1 / τ`."""
    (z, norm, c), n, factor = residuals, problem.options.anchors, problem.inv_temperature
    if isinstance(grad, Tensor):
        c = c * grad[:, None]
    else:
        factor = factor * grad
    if n == z.shape[0]:
        dz = _product(c + c.t(), z, factor, like=z)
    else:
        dz = _product(c.t(), z[:n], factor, like=z)
        dz[:n].add_(_product(c, z, factor, like=z[:n]))
    return problem.gradients(dz, z, norm)


def _product(a: Tensor, b: Tensor, factor: Tensor | float, like: Tensor) -> Tensor:
    """Return `factor * a @ b`, computed in one operation if the factor is a number."""
    if isinstance(factor, Tensor) or torch.compiler.is_compiling():
        return torch.mm(a, b).mul_(factor)
    return torch.addmm(like, a, b, beta=0, alpha=factor)
