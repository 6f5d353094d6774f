"""Laws of the supervised contrastive loss."""

import math

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, law, measured
from unmuddle.testing.laws.findings import need_positives, number
from unmuddle.testing.loss import Loss


@law("contrastive")
def equal_rows(loss: Loss, batch: Batch) -> Finding:
    """Equal rows have the loss `log(N - 1)`.

    All similarities are equal, so each of the N - 1 other rows has the same probability.
    """
    need_positives(batch)
    x = batch.features[:1].expand(batch.n, -1).clone()
    value, budget = measured(loss, loss.value, x, batch.labels)
    return Finding(value, "==", number(math.log(batch.n - 1)), budget)


@law("contrastive")
def lower_bound(loss: Loss, batch: Batch) -> Finding:
    """`L_i >= log |P(i)|`, in the mean over anchors.

    The sum in the logarithm includes the positives. The logarithm of the mean of their exponentials
    is at least the mean of their similarities, by Jensen's inequality.
    """
    need_positives(batch)
    labels = batch.labels
    positives = (labels[:, None] == labels).sum(1) - 1
    bound = positives[positives > 0].double().log().mean()
    return Finding(bound, "<=", *measured(loss, loss.value, batch.features, labels))


@law("contrastive")
def mean_over_anchors(loss: Loss, batch: Batch) -> Finding:
    """Every anchor counts once, whatever the size of its class.

    Three rows x and two rows -x have the loss `L = (3 log(2 + 2 r) + 2 log(1 + 3 r)) / 5`, where r
    depends on the temperature. It is determined from a batch of two rows x and one row -x. That row
    has no positive, so the loss of the batch is `L = log(1 + r)`.
    """
    x = batch.features[:1]

    def opposite(more: int, fewer: int) -> tuple[Tensor, float]:
        rows = torch.cat([x.expand(more, -1), -x.expand(fewer, -1)])
        labels = torch.tensor([0] * more + [1] * fewer)
        return measured(loss, loss.value, rows, labels)

    (value, budget), (of_one_class, its_budget) = opposite(3, 2), opposite(2, 1)
    r = of_one_class.exp() - 1
    expected = (3 * (2 + 2 * r).log() + 2 * (1 + 3 * r).log()) / 5
    return Finding(value, "==", expected, budget + 3 * its_budget)


@law("contrastive", "temperature")
def opposite_classes(loss: Loss, batch: Batch) -> Finding:
    """Two rows x and two rows -x have the loss `log(1 + 2 exp(-2/τ))`.

    The similarity of a positive is 1/τ, and that of each of the two negatives is -1/τ. The
    temperature must divide the similarities.
    """
    x = torch.cat([batch.features[:1]] * 2 + [-batch.features[:1]] * 2)
    labels = torch.tensor([0, 0, 1, 1])
    value, budget = measured(loss, loss.value, x, labels, temperature=0.5)
    return Finding(value, "==", number(math.log1p(2 * math.exp(-4))), budget)


@law("contrastive", "temperature")
def upper_bound(loss: Loss, batch: Batch) -> Finding:
    """`L_i <= 2/τ + log(N - 1)`.

    Similarities lie between -1/τ and 1/τ. The sum of the exponentials is therefore at most
    (N - 1) exp(1/τ), and the mean over the positives is at least -1/τ.
    """
    need_positives(batch)
    x, labels = batch.features, batch.labels
    value, budget = measured(loss, loss.value, x, labels, temperature=0.5)
    return Finding(value, "<=", number(2 / 0.5 + math.log(batch.n - 1)), budget)


@law("contrastive", change="one more row, of a class of its own")
def stranger(loss: Loss, batch: Batch) -> Finding:
    """A sample of a class of its own raises the loss of all others.

    The sample adds a term to the sum in every logarithm, and to no mean over positives. It has no
    positive, so its own loss is not part of the mean.
    """
    need_positives(batch)
    x, labels = batch.features, batch.labels
    more = torch.cat([x, batch.normal(1, batch.dim, purpose=25)])
    more_labels = torch.cat([labels, labels.max()[None] + 1])
    value, budget = measured(loss, loss.value, x, labels)
    return Finding(value, "<=", loss.value(more, more_labels), budget)


@law("contrastive", "temperature", "normalize", change="2 x, and 4 times the temperature")
def temperature_is_a_scale(loss: Loss, batch: Batch) -> Finding:
    """`L(c x, c^2 τ) = L(x, τ)` without normalisation.

    Features and temperature enter as `x_i · x_j / τ` only.
    """
    x, labels = batch.features, batch.labels
    value, budget = measured(loss, loss.value, x, labels, temperature=0.5, normalize=False)
    found = loss.value(2 * x, labels, temperature=2.0, normalize=False)
    return Finding(found, "==", value, budget)


@law("contrastive", "temperature", "normalize")
def temperature_gradient(loss: Loss, batch: Batch) -> Finding:
    """`∂L/∂τ = -(1/2τ) Σ_i ⟨x_i, ∂L/∂x_i⟩`, without normalising.

    This is the derivative of `temperature_is_a_scale` with respect to c (Euler's theorem). The law
    computes `∂L/∂τ` by central differences, with a budget as in `directional_derivative`.
    """
    x, labels, tau = batch.features / 2, batch.labels, 1.0
    h = 1e-4

    def difference(h: float) -> Tensor:
        above = loss.value(x, labels, temperature=tau + h, normalize=False)
        below = loss.value(x, labels, temperature=tau - h, normalize=False)
        return (above - below).detach() / (2 * h)

    options = {"temperature": tau, "normalize": False}
    coarse, fine = difference(h), difference(h / 2)
    expected = -(x * loss.gradient(x, labels, **options)).sum() / (2 * tau)
    rounding = measured(loss, loss.value, x, labels, **options)[1] / h
    return Finding(fine, "==", expected, 10 * abs(float(coarse - fine)) + 4 * rounding)


@law("contrastive", "positives", change="positives inside the logarithm")
def in_below_out(loss: Loss, batch: Batch) -> Finding:
    """The mean inside the logarithm is at most that outside: `L_in <= L_out`.

    This follows from Jensen's inequality; see section 3.2.2 of Khosla et al.
    """
    x, labels = batch.features, batch.labels
    inside = loss.value(x, labels, positives="in")
    return Finding(inside, "<=", *measured(loss, loss.value, x, labels, positives="out"))
