"""How noisy the labels are, and what a label and a prediction together say of the truth.

A label y is right with probability 1 - ε, and else any other class alike. The prediction p says
which class k the sample really has, once it is told how sure it should be (A = β I + M) and how
often it takes one class for another (M, b):

    q = softmax(A log p + b)    P(y | k) = 1 - ε if y = k, else ε / (K - 1)
    P(y) = Σ_k q[k] P(y | k)    P(k | y) = q[k] P(y | k) / P(y)

`fit_noise` finds the A, b and ε that make the given labels most likely. Label noise comes alike
from all classes, a network's own confusions do not: that tells them apart.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.uerm.evidence import Distribution

FITTED = 16_384  # samples that a fit looks at, spread evenly over all
FLOOR = 1e-4  # least probability that counts; what a top-k history forgot has it too
PAIRS = 64  # up to this many classes, each pair may be confused in its own way


class NoiseModel(NamedTuple):
    """What `fit_noise` found.

    Attributes:
        rate: ε, the share of labels that are wrong.
        sharpness: β; more than 1 where predictions are less certain than they could be.
        confusion: `(K, K)` M; `None` for more than 64 classes and for top-k histories.
        bias: `(K,)` b.
    """

    rate: Tensor
    sharpness: Tensor
    confusion: Tensor | None
    bias: Tensor


def fit_noise(predictions: Distribution, labels: Tensor, num_classes: int) -> NoiseModel:
    """The most likely noise model, given labels `(n,)` and what was predicted of their samples.

    With priors that matter for some hundred samples or less: ε around 0.1, β around 1, M and b
    around 0. Predictions of a model that has learned the labels by heart hide their noise.

    Examples:
        >>> p, y = torch.eye(2)[torch.arange(1000) % 2], torch.arange(1000) % 2
        >>> y[:200] = 1 - y[:200]  # a fifth is contradicted
        >>> round(float(fit_noise(Distribution(p), y, 2).rate), 2)
        0.2
    """
    step = -(-max(len(labels), 1) // FITTED)
    classes, y = predictions.classes, labels[::step]
    p = Distribution(
        predictions.probabilities[::step].double(), None if classes is None else classes[::step]
    )
    scalars = y.new_zeros(2, dtype=torch.float64)
    scalars[0] = -2.2  # logit of ε = 0.1
    bias = y.new_zeros(num_classes, dtype=torch.float64)
    pairwise = classes is None and num_classes <= PAIRS
    confusion = y.new_zeros(num_classes, num_classes, dtype=torch.float64) if pairwise else None
    found = [scalars, bias] + ([] if confusion is None else [confusion])
    for parameter in found:
        parameter.requires_grad = True

    def model() -> NoiseModel:
        return NoiseModel(scalars[0].sigmoid(), scalars[1].exp(), confusion, bias)

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_rate, log_rest = torch.nn.functional.logsigmoid(torch.stack([scalars[0], -scalars[0]]))
        prior = log_rate + 9 * log_rest - 2 * scalars[1] ** 2 - 0.5 * bias.square().sum()
        if confusion is not None:
            prior = prior - 10 * confusion.square().sum()
        value = -(_joint(p, y, model()).sum(1).log().sum() + prior) / max(len(y), 1)
        value.backward()
        return value

    optimizer = torch.optim.LBFGS(found, max_iter=100, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    for parameter in found:
        parameter.requires_grad = False
    return model()


def posterior(predictions: Distribution, labels: Tensor, model: NoiseModel) -> Distribution:
    """`P(k | y)`, what class each sample really has, given its label y and its prediction.

    Examples:
        >>> p, y = torch.tensor([[0.98, 0.02]]), torch.tensor([1])
        >>> plain = NoiseModel(torch.tensor(0.1), torch.tensor(1.0), None, torch.zeros(2))
        >>> posterior(Distribution(p), y, plain).probabilities
        tensor([[0.8448, 0.1552]])
    """
    joint = _joint(predictions, labels, model)
    return Distribution((joint / joint.sum(1, keepdim=True)).float(), predictions.classes)


def _joint(p: Distribution, labels: Tensor, model: NoiseModel) -> Tensor:
    """`(n, k)` q[k] P(y | k)."""
    rate, sharpness, confusion, bias = model
    log_p = p.probabilities.to(bias.dtype).clamp(min=FLOOR).log()
    log_q = sharpness * log_p + (bias if p.classes is None else bias[p.classes.long()])
    if confusion is not None:
        log_q = log_q + (log_p - log_p.mean(1, keepdim=True)) @ confusion
    entries = torch.arange(len(bias), device=labels.device) if p.classes is None else p.classes
    is_label = entries == labels[:, None]
    return log_q.softmax(1) * torch.where(is_label, 1 - rate, rate / (len(bias) - 1))
