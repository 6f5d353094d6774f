"""Eq. 2 and Eq. 3 of Khosla et al. 2020, written down: the oracle for every other backend.

Builds `(N, T)` matrices. Differentiable any number of times.
"""

import torch
from torch import Tensor

from unmuddle.supcon.problem import Problem


def anchor_losses(problem: Problem, positives: str, denominator: str) -> tuple[Tensor, Tensor]:
    """The losses `(N,)` of the anchors, and which anchors have one."""
    z, n = problem.z, problem.anchors
    s = z[:n] @ z.T * problem.inv_temperature
    is_other = ~torch.eye(n, len(z), dtype=torch.bool, device=z.device)
    if problem.included is not None:
        is_other = is_other & (problem.included > 0)

    weights = problem.positives.tile(slice(n), slice(None)) * is_other
    count = weights.sum(1)
    contrast = is_other & (weights == 0) if denominator == "negatives" else is_other
    has_loss = (count > 0) & contrast.any(1)
    # Rows without a loss may be without a term, all -inf, whose gradient is NaN: give them one.
    is_empty = ~has_loss[:, None]
    log_denominator = s.masked_fill(~(contrast | is_empty), -torch.inf).logsumexp(1)

    count = torch.where(has_loss, count, 1)
    if positives == "out":
        log_numerator = (weights * s).sum(1) / count
    else:
        is_positive = weights > 0
        log_weights = torch.where(is_positive, weights, 1).log()
        within = (s + log_weights).masked_fill(~(is_positive | is_empty), -torch.inf)
        log_numerator = within.logsumexp(1) - count.log()
    losses = torch.where(has_loss, log_denominator - log_numerator, 0)
    # NaN in, NaN out, and a graph, even where there is no anchor.
    return losses + 0 * (z.sum() + weights.sum()), has_loss.to(z.dtype)
