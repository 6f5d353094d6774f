"""Small batches: all N x T pairs at once, keeping `dL_i/ds_ij` for the backward.

Fewer operations than tiles, and every coefficient is rounded once, like an eager computation's.
"""

import torch
from torch import Tensor

from unmuddle.supcon.problem import Problem

MAX_PAIRS = 512**2  # 1 MB of fp32 coefficients; beyond, tiles are faster


def forward(problem: Problem, positives: str, denominator: str) -> tuple[Tensor, Tensor, Tensor]:
    """Losses `(N,)`, which anchors have one, and the coefficients `dL_i/ds_ij` `(N, T)`."""
    z, n = problem.z, problem.anchors
    info = torch.finfo(z.dtype)
    lowest = info.min / 2  # in place of -inf, so that 0 * s is 0
    s = torch.mm(z if n == len(z) else z[:n], z.T).mul_(problem.inv_temperature)
    s.fill_diagonal_(lowest)
    if problem.included is not None:
        s.masked_fill_(problem.included == 0, lowest)
    w = problem.positives.tile(slice(n), slice(None)).fill_diagonal_(0)
    count = w.sum(1, keepdim=True)
    has_loss = count.sign()

    if denominator == "all":
        log_p = s.log_softmax(1)
        p = None
    else:
        others = s.masked_fill(w != 0, lowest)
        has_loss *= (others > lowest).any(1, keepdim=True)
        w *= has_loss
        # Without a negative any finite shift will do.
        lse = torch.where(has_loss > 0, others.logsumexp(1, keepdim=True), s.amax(1, keepdim=True))
        log_p, p = s - lse, (others - lse).exp_()

    minus_share = w.div_(torch.rsub(count, -info.tiny))  # 0 where there is no positive
    if positives == "out":
        losses = (minus_share * log_p).sum(1)
    else:
        log_mean = (log_p + minus_share.neg().log_()).logsumexp(1, keepdim=True)
        log_mean.masked_fill_(has_loss == 0, 0)
        losses = 0 * log_p.amax(1) - log_mean[:, 0]  # NaN in, NaN out
        minus_share.mul_((log_p - log_mean).exp_())
    p = log_p.exp_() if p is None else p
    return losses, has_loss[:, 0], minus_share.addcmul_(p, has_loss)


def pull(z: Tensor, g: Tensor, coefficients: Tensor) -> Tensor:
    """`(T, D)`: the gradient of `sum_i g_i L_i` in z, times τ."""
    n = len(g)
    w = coefficients * g[:, None]
    if n == len(z):
        return torch.mm(w + w.T, z)
    dz = torch.mm(w.T, z[:n])
    dz[:n] += torch.mm(w, z)
    return dz
