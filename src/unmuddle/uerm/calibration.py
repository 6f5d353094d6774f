"""Calibration of the posterior on verified labels."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from unmuddle.uerm.distribution import Distribution

TINY = 1e-5  # posterior probabilities are clamped to [TINY, 1 - TINY]
# Standard deviations of the normal priors. The mean is 1 for the slope and 0 for the others.
SLOPE, INTERCEPT, OF_CLASS, OF_RIVAL = 0.5, 3.0, 1.0, 0.5


@torch.inference_mode(False)
def calibrate(
    posterior: Distribution,
    labels: Tensor,
    num_classes: int,
    *,
    verified: Tensor,
    truth: Tensor,
) -> Distribution:
    """Calibrate a posterior on the samples whose label a person verified.

    Let u be the posterior probability that the label y is wrong, and r the most likely other class:

        P(wrong) = sigmoid(a · logit u + b + c[y] + d[r])

    a, b, c and d are maximum a posteriori estimates given the verified samples, under normal
    priors. A class without verified samples therefore follows the others. A few dozen verified
    labels reveal noise that the network has memorised, which no fit to the given labels can detect.
    The posterior is not changed until both a right and a wrong label have been verified, since
    answers about clear cases alone say nothing about the others. The classes other than y keep
    their proportions.

    Args:
        posterior: `P(k | y)` for n samples.
        labels: `(n,)` original labels y.
        num_classes: K.
        verified: `(n,)` True for samples whose label a person verified.
        truth: `(n,)` labels that the person chose; used only for verified samples.

    Examples:
        >>> p = Distribution(torch.tensor([[0.9, 0.1]]).repeat(40, 1))
        >>> y, verified = torch.zeros(40, dtype=torch.int64), torch.arange(40) < 20
        >>> truth = (torch.arange(40) > 1).long()  # two of the twenty that were verified are right
        >>> bool(calibrate(p, y, 2, verified=verified, truth=truth).prob_of(y).max() < 0.3)
        True
    """
    ids = verified.nonzero()[:, 0]
    is_wrong = (truth != labels)[ids]
    if not is_wrong.any() or is_wrong.all():
        return posterior
    wrong = (1 - posterior.prob_of(labels).double()).clamp(TINY, 1 - TINY)
    logit, rival = wrong.logit(), posterior.rival(labels)[1]
    slope, intercept = logit.new_ones(()), logit.new_zeros(())
    of_class, of_rival = logit.new_zeros(2, num_classes)
    free = [slope, intercept, of_class, of_rival]

    def calibrated(rows: Tensor) -> Tensor:
        offset = of_class[labels[rows]] + of_rival[rival[rows]]
        return slope * logit[rows] + intercept + offset

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = ((slope - 1) / SLOPE).square() + (intercept / INTERCEPT).square()
        prior = prior + (of_class / OF_CLASS).square().sum() + (of_rival / OF_RIVAL).square().sum()
        fit = binary_cross_entropy_with_logits(calibrated(ids), is_wrong.to(logit), reduction="sum")
        value = (fit + prior / 2) / len(ids)
        value.backward()
        return value

    for parameter in free:
        parameter.requires_grad = True
    optimizer = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    with torch.no_grad():
        now = calibrated(torch.arange(len(labels), device=labels.device)).sigmoid()
        return _with_wrong(posterior, labels, now.float())


def _with_wrong(p: Distribution, labels: Tensor, wrong: Tensor) -> Distribution:
    """Scale the classes other than the label to sum to `wrong` `(n,)`; keep their proportions."""
    classes = p.classes
    if classes is None:
        classes = torch.arange(p.probabilities.shape[1], device=labels.device)
    is_label = classes == labels[:, None]
    others = p.probabilities.masked_fill(is_label, 0)
    total = others.sum(1, keepdim=True)
    even = (~is_label).float() / (others.shape[1] - 1)  # for a label with probability 1
    others = wrong[:, None] * torch.where(total > 0, others / total, even)
    return Distribution(torch.where(is_label, 1 - wrong[:, None], others), p.classes)
