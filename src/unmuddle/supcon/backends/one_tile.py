"""Small batches: all N x T pairs at once, keeping `dL/ds_ij` for the backward.

Fewer operations than tiles, and every coefficient is rounded once, like an eager computation's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.positives import ALL
from unmuddle.supcon.problem import Problem
from unmuddle.supcon.reduction import AnchorWeights

MAX_PAIRS = 512**2  # 1 MB of fp32 coefficients; beyond, tiles are faster
# 16 MB; a step on a GPU is mostly the launches of its operations, and this one has the fewest.
MAX_PAIRS_GPU = 2048**2


class Tile(NamedTuple):
    """Losses of N anchors, each times a weight `g_i` of its own, and their derivative.

    Attributes:
        terms: `(N, ...)`, those of row i add up to `g_i L_i`.
        counts: `(N, 1)`, the positives' weights, 0 where an anchor has no loss.
        coefficients: `(N, T)`, `d(g_i L_i)/ds_ij`.
    """

    terms: Tensor
    counts: Tensor
    coefficients: Tensor


def holds(pairs: int, device: torch.device) -> bool:
    """Whether a batch of so many pairs is small."""
    return pairs <= (MAX_PAIRS if device.type == "cpu" else MAX_PAIRS_GPU)


def forward(problem: Problem, positives: str, denominator: str, weights: AnchorWeights) -> Tile:
    """Losses of all anchors, times `g = weights.of(has_loss)`."""
    z, n = problem.z, problem.anchors
    info = torch.finfo(z.dtype)
    lowest = info.min / 2  # in place of -inf, so that 0 * s is 0
    rows = ALL if n == z.shape[0] else slice(n)
    s = torch.mm(z if rows == ALL else z[rows], z.t()).mul_(problem.inv_temperature)
    s.fill_diagonal_(lowest)
    if problem.included is not None:
        s.masked_fill_(problem.included == 0, lowest)
    w = problem.positives.tile(rows, ALL).fill_diagonal_(0)
    count = w.sum(1, keepdim=True)

    parts = weights.equal_parts(n)
    if positives == "out" and denominator == "all" and parts and _surely_positive(count):
        # The usual case of what follows, in fewer operations.
        pull, log_p = w.div_(count * -parts), s.log_softmax(1)
        coefficients = _through_log_softmax(pull, log_p)
        return Tile(log_p.mul_(pull), count, coefficients)

    if denominator == "all":
        others, log_p, counted = s, s.log_softmax(1), count
    else:
        others = s.masked_fill(w != 0, lowest)
        counted = count * (others > lowest).any(1, keepdim=True)
        # Without a negative any finite shift will do.
        lse = torch.where(counted > 0, others.logsumexp(1, keepdim=True), s.amax(1, keepdim=True))
        log_p = s - lse

    g = weights.of(counted[:, 0].sign()).unsqueeze(1)
    divisor = count.clamp_min(info.tiny)  # 0 / tiny is 0 where there is no positive
    if positives == "out":
        pull = w.mul_(-g / divisor)
        terms = pull * log_p
    else:
        shares = log_p + w.div_(divisor).log_().clamp_(min=lowest)
        pull = shares.softmax(1).mul_(-g)
        terms = -g * shares.logsumexp(1, keepdim=True)
    if denominator == "all":
        coefficients = _through_log_softmax(pull, log_p)
    else:
        coefficients = torch.addcmul(pull, others.softmax(1), g)
    return Tile(terms, counted, coefficients)


def _through_log_softmax(pull: Tensor, log_p: Tensor) -> Tensor:
    """`pull - exp(log_p) * its sum over a row`, where that sum is -g."""
    return torch._log_softmax_backward_data(pull, log_p, 1, log_p.dtype)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _surely_positive(count: Tensor) -> bool:
    """Whether a look at the counts, where it costs no synchronisation, finds no anchor alone."""
    return count.is_cpu and count.numel() > 0 and count.min().item() > 0


def pull(z: Tensor, coefficients: Tensor) -> Tensor:
    """`(T, D)`: the gradient in z, times τ, of what the coefficients in s are of."""
    n = coefficients.shape[0]
    if n == z.shape[0]:
        return torch.mm(coefficients + coefficients.t(), z)
    dz = torch.mm(coefficients.T, z[:n])
    dz[:n] += torch.mm(coefficients, z)
    return dz
