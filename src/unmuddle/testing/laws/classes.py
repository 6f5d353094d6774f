"""Laws for losses of class scores, and for losses that compare labels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, law, measured
from unmuddle.testing.laws.findings import number, same_value
from unmuddle.testing.loss import Loss, NotApplicableError

SUMMED_GRADIENT = (
    "gradient = torch.autograd.grad(loss(x.requires_grad_(), y), x)[0]\n"
    "print(gradient.sum(0))  # zero for a proper loss"
)


@law("logits", change="classes renumbered, scores and labels")
def renamed_scores(loss: Loss, batch: Batch) -> Finding:
    """Classes may be numbered in any order, if scores and labels both are."""
    order = torch.randperm(batch.dim, generator=batch.generator(27))
    x = torch.empty_like(batch.features)
    x[:, order] = batch.features
    return same_value(loss, batch, x, order[batch.labels % batch.dim])


@law("logits", change="scores that favour another class")
def informative_scores(loss: Loss, batch: Batch) -> Finding:
    """Scores that clearly favour the label cost less than scores that clearly favour another class.

    Otherwise, minimising the loss would not train a network to predict the labels. Scores are about
    4 for the favoured class and 0 for the others. A hinge loss is flat where the score of the label
    leads by the margin.
    """
    if batch.dim < 2:
        raise NotApplicableError
    of_label = 4 * torch.nn.functional.one_hot(batch.labels % batch.dim, batch.dim).double()
    x = 0.1 * batch.features.clamp(-3, 3)
    value, budget = measured(loss, loss.value, x + of_label, batch.labels)
    return Finding(value, "<", loss.value(x + of_label.roll(1, 1), batch.labels), budget)


@law("shift_invariant", change="a constant added to each row")
def score_shift(loss: Loss, batch: Batch) -> Finding:
    """A constant added to all scores of a sample changes nothing: `L(x + c) = L(x)`."""
    moved = batch.features + batch.normal(batch.n, 1, purpose=32)
    return same_value(loss, batch, moved, batch.labels)


@law("cross_entropy")
def equal_scores(loss: Loss, batch: Batch) -> Finding:
    """Cross-entropy is `log D` where all D scores of a sample are equal."""
    if batch.dim < 2:
        raise NotApplicableError
    x = batch.normal(batch.n, 1, purpose=33).expand(-1, batch.dim).clone()
    value, budget = measured(loss, loss.value, x, batch.labels)
    samples = batch.n if "sum" in loss.traits else 1
    return Finding(value, "==", samples * number(math.log(batch.dim)), budget)


@law("proper", change="scores a step away from the truth")
def proper(loss: Loss, batch: Batch) -> Finding:
    """The mean loss is least where the softmax of the scores is the shares of the labels."""
    x, labels = _scores_of_truth(batch, lambda shares: shares.log())
    return _least(loss, batch, x, labels)


@law("proper", show=SUMMED_GRADIENT)
def proper_gradient(loss: Loss, batch: Batch) -> Finding:
    """The summed gradient is zero where the softmax of the scores is the shares of the labels."""
    x, labels = _scores_of_truth(batch, lambda shares: shares.log())
    return _flat(loss, x, labels)


@law("proper_sigmoid", change="scores a step away from the truth")
def proper_sigmoid(loss: Loss, batch: Batch) -> Finding:
    """The mean loss is least where the sigmoid of each score is the share of its class."""
    x, labels = _scores_of_truth(batch, torch.logit)
    return _least(loss, batch, x, labels)


@law("proper_sigmoid", show=SUMMED_GRADIENT)
def proper_sigmoid_gradient(loss: Loss, batch: Batch) -> Finding:
    """The summed gradient is zero where the sigmoid of each score is the share of its class."""
    x, labels = _scores_of_truth(batch, torch.logit)
    return _flat(loss, x, labels)


def _scores_of_truth(batch: Batch, scores: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return scores of the relative frequencies of the classes, and labels of every class."""
    if batch.dim < 2:
        raise NotApplicableError
    labels = torch.cat([torch.arange(batch.dim), batch.labels % batch.dim])
    shares = labels.bincount(minlength=batch.dim).double() / len(labels)
    return scores(shares).expand(len(labels), -1).clone(), labels


def _least(loss: Loss, batch: Batch, x: Tensor, labels: Tensor) -> Finding:
    value, budget = measured(loss, loss.value, x, labels)
    steps = [size * batch.normal(batch.dim, purpose=34 + i) for i, size in enumerate((0.1, 1, 3))]
    return Finding(value, "<=", torch.stack([loss.value(x + s, labels) for s in steps]), budget)


def _flat(loss: Loss, x: Tensor, labels: Tensor) -> Finding:
    gradient, budget = measured(loss, loss.gradient, x, labels)
    return Finding(gradient.sum(0), "==", 0.0, len(x) * budget)


@law("certain")
def certain_prediction(loss: Loss, batch: Batch) -> Finding:
    """A right prediction with near certainty costs nothing."""
    if batch.dim < 2:
        raise NotApplicableError
    of_label = torch.nn.functional.one_hot(batch.labels % batch.dim, batch.dim).double()
    return Finding(loss.value(200 * (2 * of_label - 1), batch.labels), "==", 0.0, 1e-6)


@law(
    "balanced",
    change="norms of the gradients of a sample of the frequent class and of the rare class",
    show="x = torch.zeros(6, 2, dtype=torch.float64)\n"
    "y = torch.tensor([0, 1, 1, 1, 1, 1])\n"
    "gradient = torch.autograd.grad(loss(x.requires_grad_(), y), x)[0]\n"
    "print(gradient.norm(dim=1))  # the first, of the rare class, must be the largest",
)
def rare_class(loss: Loss, batch: Batch) -> Finding:
    """The gradient of a sample of a rare class is longer than that of one of a frequent class.

    The batch has six samples with equal scores. One sample belongs to the rare class, and the other
    five belong to another class. The law compares the norms of the rows of the gradient.
    """
    if batch.dim < 2:
        raise NotApplicableError
    rare = batch.seed % batch.dim
    labels = torch.tensor([rare] + 5 * [(rare + 1) % batch.dim])
    x = torch.zeros(6, batch.dim, dtype=torch.float64)
    lengths = loss.gradient(x, labels).norm(dim=1)
    return Finding(lengths[1:].max(), "<", lengths[0], 1e-9)


@law(
    "logits",
    "mean",
    show=(
        "parts = loss(x[:1], y[:1]) + (len(x) - 1) * loss(x[1:], y[1:])\n"
        "print(parts / len(x), loss(x, y))  # found, expected"
    ),
)
def mean_of_parts(loss: Loss, batch: Batch) -> Finding:
    """The loss of a batch is the mean over its samples: `N L(A, B) = N_A L(A) + N_B L(B)`.

    The law detects a power of the mean, such as a focal loss of the mean cross-entropy.
    """
    whole, parts, budget = _in_parts(loss, batch)
    found = (parts[0] + (batch.n - 1) * parts[1]) / batch.n
    return Finding(found, "==", whole, budget / batch.n)


@law(
    "logits",
    "sum",
    show="print(loss(x[:1], y[:1]) + loss(x[1:], y[1:]), loss(x, y))  # found, expected",
)
def sum_of_parts(loss: Loss, batch: Batch) -> Finding:
    """The loss of a batch is the sum over its samples: `L(A, B) = L(A) + L(B)`."""
    whole, parts, budget = _in_parts(loss, batch)
    return Finding(parts.sum(), "==", whole, budget)


def _in_parts(loss: Loss, batch: Batch) -> tuple[Tensor, Tensor, float]:
    """Return the loss of the batch, the losses of its first sample and the rest, and a budget."""
    if "balanced" in loss.traits:  # the class weights depend on the batch
        raise NotApplicableError
    x, labels = batch.features, batch.labels
    value, budget = measured(loss, loss.value, x, labels)
    parts = [loss.value(x[part], labels[part]) for part in (slice(1), slice(1, None))]
    return value, torch.stack(parts).detach(), 4 * batch.n * budget


@law("supervised", change="classes renamed")
def renaming(loss: Loss, batch: Batch) -> Finding:
    """The names of the classes do not matter: `L(x, f(y)) = L(x, y)` for every injective f.

    Labels define only which samples belong together.
    """
    names = torch.randperm(1000, generator=batch.generator(24))[: batch.classes]
    return same_value(loss, batch, batch.features, names[batch.labels])


@law("supervised", change="classes renamed to large numbers")
def large_labels(loss: Loss, batch: Batch) -> Finding:
    """Labels may be any int64, such as hashes: near 2^62, and 2^32 apart.

    fp32 cannot distinguish the former, and int32 cannot distinguish the latter.
    """
    names = torch.tensor([2**62, 2**62 + 2**32, 2**62 + 1])
    labels = names[batch.labels % 3] + batch.labels // 3 * 2
    return same_value(loss, batch, batch.features, labels)


@law("supervised", change="labels as int32")
def label_dtype(loss: Loss, batch: Batch) -> Finding:
    """int32 labels are as good as int64."""
    return same_value(loss, batch, batch.features, batch.labels.int())


@law("supervised", change="labels that cut across the clusters")
def informative(loss: Loss, batch: Batch) -> Finding:
    """Labels that fit tight clusters cost less than labels that cut across them.

    Otherwise, minimising the loss would not bring the rows of a class together.
    """
    # Clusters lie on the positive and negative coordinate axes, so no two coincide.
    if not 2 <= batch.classes <= min(batch.n / 2, 2 * batch.dim) or batch.dim < 2:
        raise NotApplicableError
    axes = torch.cat([torch.eye(batch.dim), -torch.eye(batch.dim)]).double()
    members = torch.arange(batch.n) % batch.classes
    x = axes[members] + 0.01 * batch.features.clamp(-3, 3)
    across = torch.arange(batch.n) // batch.classes
    value, budget = measured(loss, loss.value, x, members)
    return Finding(value, "<", loss.value(x, across), budget)
