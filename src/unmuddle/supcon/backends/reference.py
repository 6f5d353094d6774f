"""Eq. 2 of Khosla et al. 2020, written down: the oracle for every other backend.

Builds `(N, N)` matrices. Differentiable any number of times.
"""

import torch
from torch import Tensor

from unmuddle.supcon.positives import Positives


def anchor_losses(
    z: Tensor, positives: Positives, included: Tensor, inv_temperature: Tensor
) -> Tensor:
    """`L_i = log sum_{a in A(i)} exp s_ia - (1 / |P(i)|) sum_{p in P(i)} s_ip`."""
    s = z @ z.T * inv_temperature
    weights = positives.dense()
    count = weights.sum(1)
    has_positive = count > 0

    is_self = torch.eye(len(z), dtype=torch.bool, device=z.device)
    is_other = ~is_self & (included > 0)
    # Rows without any other row would be all -inf, whose gradient is NaN: keep them whole.
    is_other = is_other | ~has_positive[:, None]
    log_denominator = s.masked_fill(~is_other, -torch.inf).logsumexp(1)

    attraction = (weights * s).sum(1) / torch.where(has_positive, count, 1)
    return torch.where(has_positive, log_denominator - attraction, 0)
