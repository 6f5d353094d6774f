"""Noise model of the labels, and the posterior of the true class given a label and a prediction.

A label y is right with probability 1 - ε, and else drawn from a distribution D that depends on the
class k the sample really has. The prediction p says which class that is, once it is told how sure
it should be (β) and how far each class is to be trusted (b):

    q = softmax(β log p + b)    P(y | k) = 1 - ε if y = k, else ε D[k, y]
    P(y) = Σ_k q[k] P(y | k)    P(k | y) = q[k] P(y | k) / P(y)

`fit_noise` finds ε, D and b by counting contradictions: samples whose most likely class is not
their label. β is the one that makes the given labels most likely.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.uerm.distribution import Distribution

FITTED = 16_384  # samples that the fit of β looks at, drawn from all
FLOOR = 2**-17  # least probability that counts: half of what a history can tell from 0
# Nats by which contradictions have to be uneven to count as such, and to count fully.
EVEN, UNEVEN = 0.1, 0.3
TRUST = 0.25  # power of a class's odds of agreement


class NoiseModel(NamedTuple):
    """Noise model that `fit_noise` found.

    Attributes:
        rate: ε, the share of labels that are wrong.
        confusion: `(K, K)` D; row k is the distribution of the wrong labels of class k.
        sharpness: β; more than 1 where predictions are less certain than they could be.
        bias: `(K,)` b; less than 0 for a class whose labels are contradicted more often than not.
    """

    rate: Tensor
    confusion: Tensor
    sharpness: Tensor
    bias: Tensor


@torch.inference_mode(False)
def fit_noise(predictions: Distribution, labels: Tensor, num_classes: int) -> NoiseModel:
    """Fit the noise model to labels `(n,)` and what was predicted of their samples.

    ε is the contradicted share of the samples that are predicted as confidently as the median of
    those that agree with their label, with a prior of one wrong label in ten. Where the
    contradictions go evenly to all classes, so do the wrong labels, and no class is trusted less
    than another: noise of chance. Where some classes are taken for each other, D follows the
    contradictions, and `b = log(agreed / contradicted) / 4` of the labels of each class.

    Predictions of a model that has learned the labels by heart hide their noise. Samples without a
    prediction, all of whose probabilities are 0, do not count.

    Raises:
        ValueError: fewer than two classes, of which no label can be wrong.

    Examples:
        >>> p, y = torch.eye(2)[torch.arange(1000) % 2], torch.arange(1000) % 2
        >>> y[:200] = 1 - y[:200]  # a fifth is contradicted
        >>> round(float(fit_noise(Distribution(p), y, 2).rate), 2)
        0.2
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    confidence, predicted = predictions.best()
    seen = confidence > 0
    cells = (predicted * num_classes + labels)[seen]
    counts = torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes).double()

    agrees = seen & (predicted == labels)
    confident = confidence >= confidence[agrees].median() if agrees.any() else seen
    contradicted = confident & seen & ~agrees
    rate = (contradicted.sum() + 1) / ((confident & seen).sum() + 10).double()

    agreed = counts.diagonal()
    wrong = counts - agreed.diag()
    uneven = _unevenness(wrong)
    evenly = (1 - torch.eye(num_classes, dtype=wrong.dtype, device=wrong.device)) / (
        num_classes - 1
    )
    shares = (wrong + 2 * evenly) / (wrong.sum(1, keepdim=True) + 2)
    confusion = evenly.lerp(shares, uneven)
    bias = uneven * TRUST * ((agreed + 1) / (wrong.sum(0) + 1)).log()
    model = NoiseModel(rate, confusion, torch.ones_like(rate), bias)
    return model._replace(sharpness=_fit_sharpness(predictions, labels, model))


def posterior(predictions: Distribution, labels: Tensor, model: NoiseModel) -> Distribution:
    """`P(k | y)`, what class each sample really has, given its label y and its prediction.

    Examples:
        >>> p, y = torch.tensor([[0.98, 0.02]]), torch.tensor([1])
        >>> other = 1 - torch.eye(2)
        >>> plain = NoiseModel(torch.tensor(0.1), other, torch.tensor(1.0), torch.zeros(2))
        >>> posterior(Distribution(p), y, plain).probabilities
        tensor([[0.8448, 0.1552]])
    """
    p = predictions.with_label(labels, len(model.bias))
    model = NoiseModel(*(value.float() for value in model))
    joint = _q(_log(p, torch.float32), p.classes, model) * _label_given_class(p, labels, model)
    return Distribution(joint / joint.sum(1, keepdim=True), p.classes)


def _unevenness(wrong: Tensor) -> Tensor:
    """Return 0 where contradictions `(K, K)` go evenly to all other classes, 1 where they do not.

    By the Kullback-Leibler divergence from an even distribution, in nats, less what chance makes
    of it.
    """
    classes, of_class = len(wrong), wrong.sum(1, keepdim=True)
    shares = wrong / of_class.clamp(min=1)
    divergence = (torch.special.xlogy(wrong, shares * (classes - 1))).sum()
    by_chance = (of_class > 0).sum() * (classes - 2) / 2
    nats = (divergence - by_chance) / of_class.sum().clamp(min=1)
    return ((nats - EVEN) / (UNEVEN - EVEN)).clamp(0, 1)


def _fit_sharpness(predictions: Distribution, labels: Tensor, model: NoiseModel) -> Tensor:
    """The β that makes the labels most likely; around 2, where samples are few."""
    if len(labels) > FITTED:
        drawn = _drawn(len(labels)).to(labels.device)
        predictions, labels = predictions.rows(drawn), labels[drawn]
    p = predictions.with_label(labels, len(model.bias))
    log_p = _log(p, torch.float64)
    of_label = _label_given_class(p, labels, model)
    log_sharpness = log_p.new_tensor(0.7, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_sharpness], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        q = _q(log_p, p.classes, model._replace(sharpness=log_sharpness.exp()))
        likelihood = (q * of_label).sum(1).log().sum()
        value = (2 * (log_sharpness - 0.7).square() - likelihood) / max(len(labels), 1)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    return log_sharpness.detach().exp()


def _drawn(samples: int) -> Tensor:
    """Ids that a fit looks at. By chance: data are often stored with their classes in turn."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:FITTED]


def _log(p: Distribution, dtype: torch.dtype) -> Tensor:
    return p.probabilities.to(dtype).clamp(min=FLOOR).log()


def _q(log_p: Tensor, classes: Tensor | None, model: NoiseModel) -> Tensor:
    """`(n, k)` which class a sample has, label unseen."""
    bias = model.bias if classes is None else model.bias[classes.long()]
    return (model.sharpness * log_p + bias).softmax(1)


def _label_given_class(p: Distribution, labels: Tensor, model: NoiseModel) -> Tensor:
    """`(n, k)` P(y | k) of each sample's label y and the classes k of its entries."""
    if p.classes is None:
        wrong = model.confusion.T[labels]
        return (model.rate * wrong).scatter(1, labels[:, None], (1 - model.rate).item())
    classes = p.classes.long()
    wrong = model.rate * model.confusion[classes, labels[:, None]]
    return torch.where(classes == labels[:, None], 1 - model.rate, wrong)
