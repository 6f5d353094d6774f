"""Direct implementation of Eq. 2 and 3 of Khosla et al. 2020, to test all other backends against.

It builds `(N, T)` matrices and has derivatives of any order.
"""

import torch
from torch import Tensor

from unmuddle.supcon.problem import Losses, Problem


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of all anchors."""
    n, v, z = problem.options.anchors, problem.denominator_weight, x.double()
    if problem.options.normalize:  # even the second derivative of a zero row is 0
        is_zero = (z == 0).all(1, keepdim=True)
        length = torch.linalg.vector_norm(torch.where(is_zero, 1, z), dim=1, keepdim=True)
        z = torch.where(is_zero, 0, z / length)
    s = z[:n] @ z.T * problem.inv_temperature
    is_other = ~torch.eye(n, len(z), dtype=torch.bool, device=z.device)
    if problem.included is not None:
        is_other = is_other & (problem.included > 0)

    weights = problem.positives.tile(slice(n), slice(None)) * is_other
    count = weights.sum(1)
    is_term = is_other & (weights == 0) if problem.options.denominator == "negatives" else is_other
    if v is not None:
        is_term = is_term & (v != 0)
    has_loss = (count > 0) & is_term.any(1)
    # The log-sum-exp of a row without terms is -inf, and its gradient is NaN. Rows without a loss
    # therefore keep all terms.
    is_empty = ~has_loss[:, None]
    terms = s if v is None else s + torch.where(v == 0, 1, v).log()
    log_denominator = terms.masked_fill(~(is_term | is_empty), -torch.inf).logsumexp(1)

    count = torch.where(has_loss, count, 1)
    if problem.options.positives == "out":
        log_numerator = (weights * s).sum(1) / count
    else:
        is_positive = weights > 0
        log_weights = torch.where(is_positive, weights, 1).log()
        within = (s + log_weights).masked_fill(~(is_positive | is_empty), -torch.inf)
        log_numerator = within.logsumexp(1) - count.log()
    losses = torch.where(has_loss, log_denominator - log_numerator, 0)
    # Propagate NaN and keep the autograd graph, even without an anchor.
    losses = losses + 0 * (z.sum() + weights.sum())
    return Losses(losses, has_loss.to(z.dtype), ())
