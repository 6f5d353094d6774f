"""Noise model of the labels, and the posterior of the true class given a label and a prediction.

A label y is right with probability 1 - ε, and else any other class alike. The prediction p says
which class k the sample really has, once it is told how sure it should be (β) and how often each
class is met (b):

    q = softmax(β log p + b)    P(y | k) = 1 - ε if y = k, else ε / (K - 1)
    P(y) = Σ_k q[k] P(y | k)    P(k | y) = q[k] P(y | k) / P(y)

`fit_noise` finds the β, b and ε that make the given labels most likely.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from unmuddle.uerm.distribution import Distribution

FITTED = 16_384  # samples that a fit looks at, drawn from all
FLOOR = 2**-17  # least probability that counts: half of what a history can tell from 0


class NoiseModel(NamedTuple):
    """Noise model that `fit_noise` found.

    Attributes:
        rate: ε, the share of labels that are wrong.
        sharpness: β; more than 1 where predictions are less certain than they could be.
        bias: `(K,)` b.
    """

    rate: Tensor
    sharpness: Tensor
    bias: Tensor


@torch.inference_mode(False)
def fit_noise(predictions: Distribution, labels: Tensor, num_classes: int) -> NoiseModel:
    """The most likely noise model, given labels `(n,)` and what was predicted of their samples.

    With priors that matter for some hundred samples or less: ε around 0.1, β around 2, b around 0.
    Predictions of a model that has learned the labels by heart hide their noise; so does noise
    that always takes one class for the same other one, when the predictions have taken it over, or
    there are but two classes: b, a class that is met less often, says the same.

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
    if len(labels) > FITTED:
        drawn = _drawn(len(labels)).to(labels.device)
        predictions, labels = predictions.rows(drawn), labels[drawn]
    p = predictions.with_label(labels, num_classes)
    log_p, is_label = _log(p, torch.float64), _is_label(p, labels, num_classes)

    logit = log_p.new_tensor(-2.2)  # of ε
    log_sharpness = log_p.new_tensor(0.7)
    bias = log_p.new_zeros(num_classes)
    free = [logit, log_sharpness, bias]
    for parameter in free:
        parameter.requires_grad = True
    optimizer = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")

    def model() -> NoiseModel:
        return NoiseModel(logit.sigmoid(), log_sharpness.exp(), bias)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = model()
        of_label = (_q(log_p, p.classes, found) * is_label).sum(1)
        other = found.rate / (num_classes - 1)
        likelihood = (other + (1 - found.rate - other) * of_label).log().sum()
        prior = logsigmoid(logit) + 9 * logsigmoid(-logit)
        prior = prior - 2 * (log_sharpness - 0.7).square() - 0.5 * bias.square().sum()
        value = -(likelihood + prior) / max(len(labels), 1)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    for parameter in free:
        parameter.requires_grad = False
    return model()


def posterior(predictions: Distribution, labels: Tensor, model: NoiseModel) -> Distribution:
    """`P(k | y)`, what class each sample really has, given its label y and its prediction.

    Examples:
        >>> p, y = torch.tensor([[0.98, 0.02]]), torch.tensor([1])
        >>> plain = NoiseModel(torch.tensor(0.1), torch.tensor(1.0), torch.zeros(2))
        >>> posterior(Distribution(p), y, plain).probabilities
        tensor([[0.8448, 0.1552]])
    """
    num_classes = len(model.bias)
    p = predictions.with_label(labels, num_classes)
    model = NoiseModel(*(value.float() for value in model))
    joint = _q(_log(p, torch.float32), p.classes, model)
    is_label = _is_label(p, labels, num_classes)
    joint = joint * torch.where(is_label, 1 - model.rate, model.rate / (num_classes - 1))
    return Distribution(joint / joint.sum(1, keepdim=True), p.classes)


def _drawn(samples: int) -> Tensor:
    """Ids that a fit looks at. By chance: data are often stored with their classes in turn."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:FITTED]


def _log(p: Distribution, dtype: torch.dtype) -> Tensor:
    return p.probabilities.to(dtype).clamp(min=FLOOR).log()


def _is_label(p: Distribution, labels: Tensor, num_classes: int) -> Tensor:
    """`(n, k)` which entry is that of the label."""
    classes = torch.arange(num_classes, device=labels.device) if p.classes is None else p.classes
    return classes == labels[:, None]


def _q(log_p: Tensor, classes: Tensor | None, model: NoiseModel) -> Tensor:
    """`(n, k)` which class a sample has, label unseen."""
    bias = model.bias if classes is None else model.bias[classes.long()]
    return (model.sharpness * log_p + bias).softmax(1)
