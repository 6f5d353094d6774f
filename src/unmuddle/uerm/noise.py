"""How noisy the labels are, and what a label and a prediction together say of the truth.

A label y is right with probability 1 - ε, and else any other class alike. The prediction p says
which class k the sample really has, once it is told how sure it should be (β), how often each
class is met (b), and which classes it takes for which others (C):

    q = softmax(β log p + (log p - mean_k log p) C + b)
    P(y | k) = 1 - ε if y = k, else ε / (K - 1)
    P(y) = Σ_k q[k] P(y | k)    P(k | y) = q[k] P(y | k) / P(y)

`fit_noise` finds the β, C, b and ε that make the given labels most likely.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.uerm.evidence import Distribution

FITTED = 16_384  # samples that a fit looks at, spread evenly over all
CONFUSED = 64  # most classes for which C is fitted
FLOOR = 2**-17  # least probability that counts: half of what a history can tell from 0


class NoiseModel(NamedTuple):
    """What `fit_noise` found.

    Attributes:
        rate: ε, the share of labels that are wrong.
        sharpness: β; more than 1 where predictions are less certain than they could be.
        bias: `(K,)` b.
        confusion: `(K, K)` C; `None` where it is not fitted.
    """

    rate: Tensor
    sharpness: Tensor
    bias: Tensor
    confusion: Tensor | None = None


def fit_noise(predictions: Distribution, labels: Tensor, num_classes: int) -> NoiseModel:
    """The most likely noise model, given labels `(n,)` and what was predicted of their samples.

    C is fitted to whole predictions of at most 64 classes. With priors that matter for some hundred
    samples or less: ε around 0.1, β around 2, b and C around 0.
    Predictions of a model that has learned the labels by heart hide their noise; so does noise
    that always takes one class for the same other one, when the predictions have taken it over.

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
    confused = classes is None and num_classes <= CONFUSED
    # The logit of ε, the logarithm of β, b, then C.
    found = y.new_zeros(2 + num_classes + confused * num_classes**2, dtype=torch.float64)
    found[:2] = torch.tensor([-2.2, 0.7])
    found.requires_grad = True
    optimizer = torch.optim.LBFGS([found], max_iter=100, line_search_fn="strong_wolfe")

    def model(found: Tensor) -> NoiseModel:
        bias, confusion = found[2 : 2 + num_classes], found[2 + num_classes :]
        return NoiseModel(
            rate=found[0].sigmoid(),
            sharpness=found[1].exp(),
            bias=bias,
            confusion=confusion.view(num_classes, num_classes) if confused else None,
        )

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = (
            torch.nn.functional.logsigmoid(found[0])
            + 9 * torch.nn.functional.logsigmoid(-found[0])
            - 2 * (found[1] - 0.7) ** 2
            - 0.5 * found[2 : 2 + num_classes].square().sum()
            - 10 * found[2 + num_classes :].square().sum()
        )
        value = -(_joint(p, y, model(found)).sum(1).log().sum() + prior) / max(len(y), 1)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    return model(found.detach())


def posterior(predictions: Distribution, labels: Tensor, model: NoiseModel) -> Distribution:
    """`P(k | y)`, what class each sample really has, given its label y and its prediction.

    Examples:
        >>> p, y = torch.tensor([[0.98, 0.02]]), torch.tensor([1])
        >>> plain = NoiseModel(torch.tensor(0.1), torch.tensor(1.0), torch.zeros(2))
        >>> posterior(Distribution(p), y, plain).probabilities
        tensor([[0.8448, 0.1552]])
    """
    joint = _joint(predictions, labels, model)
    return Distribution((joint / joint.sum(1, keepdim=True)).float(), predictions.classes)


def _joint(p: Distribution, labels: Tensor, model: NoiseModel) -> Tensor:
    """`(n, k)` q[k] P(y | k)."""
    rate, sharpness, bias, confusion = model
    log_p = p.probabilities.to(bias.dtype).clamp(min=FLOOR).log()
    scores = sharpness * log_p + (bias if p.classes is None else bias[p.classes.long()])
    if confusion is not None:
        scores = scores + (log_p - log_p.mean(1, keepdim=True)) @ confusion
    entries = torch.arange(len(bias), device=labels.device) if p.classes is None else p.classes
    is_label = entries == labels[:, None]
    return scores.softmax(1) * torch.where(is_label, 1 - rate, rate / (len(bias) - 1))
