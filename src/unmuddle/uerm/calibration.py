"""Calibration of the posterior on verified labels."""

import torch
from torch import Tensor

from unmuddle.uerm.distribution import Distribution

TINY = 1e-5  # lower bound of the probabilities that are calibrated
# Standard deviations of the normal priors. The mean is 1 for the slope and 0 for the others.
SLOPE, OF_LABEL, OF_CLASS = 0.5, 3.0, 1.0


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

    Let `P(k)` be the posterior of a sample with label y. The calibrated posterior is

        softmax_k(a · log P(k) + d[k] + [k = y] · (b + c[y]))

    a, b, c and d are maximum a posteriori estimates given the verified samples, under normal
    priors. A class without verified samples therefore follows the others. A few dozen verified
    labels reveal noise that the network has memorised, which no fit to the given labels can detect.
    The posterior is not changed until both a right and a wrong label have been verified, since
    answers about clear cases alone say nothing about the others.

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
    log_p = posterior.probabilities.double().clamp(min=TINY).log()
    classes = posterior.classes
    if classes is None:
        classes = torch.arange(num_classes, device=labels.device).expand_as(log_p)
    classes = classes.long()
    is_true = classes[ids] == truth[ids, None]
    # A true class that a top-k history forgot is another one than the label.
    is_true |= ~is_true.any(1, keepdim=True) & (classes[ids] != labels[ids, None])
    slope, of_label = log_p.new_ones(()), log_p.new_zeros(())
    right_of_class, of_class = log_p.new_zeros(2, num_classes)
    free = [slope, of_label, right_of_class, of_class]

    def calibrated(rows: Tensor) -> Tensor:
        given, entries = labels[rows, None], classes[rows]
        of_right = (entries == given) * (of_label + right_of_class[given])
        return (slope * log_p[rows] + of_class[entries] + of_right).log_softmax(1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = ((slope - 1) / SLOPE).square() + (of_label / OF_LABEL).square()
        for bias in (right_of_class, of_class):
            prior = prior + (bias / OF_CLASS).square().sum()
        log_of_truth = calibrated(ids).masked_fill(~is_true, -torch.inf).logsumexp(1)
        value = (prior / 2 - log_of_truth.sum()) / len(ids)
        value.backward()
        return value

    for parameter in free:
        parameter.requires_grad = True
    optimizer = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    with torch.no_grad():
        everything = torch.arange(len(labels), device=labels.device)
        return Distribution(calibrated(everything).exp().float(), posterior.classes)
