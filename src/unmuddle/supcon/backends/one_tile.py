"""Small batches: all N x T pairs at once, keeping `dL/ds_ij` for the backward.

Fewer operations than tiles, and every coefficient is rounded once, like an eager computation's.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unmuddle.supcon.problem import Problem

MAX_PAIRS = 512**2  # 1 MB of fp32 coefficients; beyond, tiles are faster


def forward(
    problem: Problem, positives: str, denominator: str, weigh: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms `(N, ...)` that add up to `g_i L_i`, which anchors have a loss, `d(g_i L_i)/ds_ij`.

    `weigh` gives `g` `(N,)` from the second, which is 1 or 0; g is 0 where that is 0.
    """
    z, n = problem.z, problem.anchors
    info = torch.finfo(z.dtype)
    lowest = info.min / 2  # in place of -inf, so that 0 * s is 0
    s = torch.mm(z if n == len(z) else z[:n], z.T).mul_(problem.inv_temperature)
    s.fill_diagonal_(lowest)
    if problem.included is not None:
        s.masked_fill_(problem.included == 0, lowest)
    w = problem.positives.tile(slice(n), slice(None)).fill_diagonal_(0)
    count = w.sum(1)
    has_loss = count.sign()

    if denominator == "all":
        log_p, p = s.log_softmax(1), s.softmax(1)
    else:
        others = s.masked_fill(w != 0, lowest)
        has_loss *= (others > lowest).any(1)
        # Without a negative any finite shift will do.
        lse = torch.where(has_loss > 0, others.logsumexp(1), s.amax(1)).unsqueeze(1)
        log_p, p = s - lse, others.softmax(1)

    g = weigh(has_loss)
    minus_count = torch.rsub(count, -info.tiny)  # 0 / tiny is 0 where there is no positive
    if positives == "out":
        pull = w.mul_((g / minus_count).unsqueeze(1))
        terms = pull * log_p
    else:
        shares = log_p + w.div_(-minus_count.unsqueeze(1)).log_().clamp_(min=lowest)
        pull = shares.softmax(1).mul_(-g.unsqueeze(1))
        total = 0 * log_p.amax(1) - g * shares.logsumexp(1)  # NaN in, NaN out
        terms = total.unsqueeze(1)
    return terms, has_loss, pull.addcmul_(p, g.unsqueeze(1))


def pull(z: Tensor, coefficients: Tensor) -> Tensor:
    """`(T, D)`: the gradient in z, times τ, of what the coefficients in s are of."""
    n = len(coefficients)
    if n == len(z):
        return torch.mm(coefficients + coefficients.T, z)
    dz = torch.mm(coefficients.T, z[:n])
    dz[:n] += torch.mm(coefficients, z)
    return dz
