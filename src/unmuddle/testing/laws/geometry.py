"""Laws for losses of pairs of rows, and for losses that depend only on their directions."""

import torch

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, as_good_as_its_input, law, measured
from unmuddle.testing.laws.findings import finite, same_value
from unmuddle.testing.loss import Loss


@law("pairwise", change="rotated: x @ q")
def rotation(loss: Loss, batch: Batch) -> Finding:
    """Rotating or reflecting all rows together changes nothing: `L(xQ) = L(x)`, `QQᵀ = 1`.

    Such a loss depends only on inner products of rows or distances between them. Q preserves both.
    """
    q = torch.linalg.qr(batch.normal(batch.dim, batch.dim, purpose=22)).Q
    return same_value(loss, batch, batch.features @ q, batch.labels)


@law("pairwise", change="a column of zeros for each column")
def padding(loss: Loss, batch: Batch) -> Finding:
    """Features that are zero everywhere change nothing: `L([x, 0]) = L(x)`.

    They add nothing to an inner product or a distance. The law detects a mean over the features
    instead of a sum.
    """
    x = batch.features
    return same_value(loss, batch, torch.cat([x, torch.zeros_like(x)], 1), batch.labels)


@law(
    "pairwise",
    show=(
        "product = x.T @ torch.autograd.grad(loss(x.requires_grad_(), y), x)[0]\n"
        "print(product - product.T)  # zero for a loss of products or distances"
    ),
)
def no_torque(loss: Loss, batch: Batch) -> Finding:
    """`xᵀ ∇L` is symmetric.

    This is `rotation` for a small angle: for every antisymmetric A,
    `d/dt L(x exp(tA)) = ⟨∇L, xA⟩ = 0`.
    """
    x, labels = batch.features, batch.labels
    gradient, budget = measured(loss, loss.gradient, x, labels)
    product = x.T @ gradient
    return Finding(product, "==", product.T, batch.n * float(x.abs().max()) * budget)


@law("normalised", change="every row times a factor of its own")
def rescaling(loss: Loss, batch: Batch) -> Finding:
    """The length of a row does not matter: `L(c x) = L(x)` for every row its own c > 0."""
    lengths = batch.normal(batch.n, 1, purpose=23).exp()
    return same_value(loss, batch, lengths * batch.features, batch.labels)


@law(
    "normalised",
    show="print((x * torch.autograd.grad(loss(x.requires_grad_(), y), x)[0]).sum(1))  # zero",
)
def no_radial_gradient(loss: Loss, batch: Batch) -> Finding:
    """No row is pushed along itself: `⟨x_i, ∇_i L⟩ = 0`.

    This is the derivative of `rescaling` with respect to c_i.
    """
    x, labels = batch.features, batch.labels
    gradient, budget = measured(loss, loss.gradient, x, labels)
    budget *= batch.dim * float(x.abs().max())
    return Finding((x * gradient).sum(1), "==", torch.tensor(0.0), budget)


@law("normalised", change="8 x")
def inverse_gradient(loss: Loss, batch: Batch) -> Finding:
    """The gradient shrinks as the rows grow: `∇L(c x) = ∇L(x) / c`.

    This follows from `L(c x) = L(x)` by the chain rule. The law uses c = 8, because multiplying by
    a power of two is exact.
    """
    x, labels = batch.features, batch.labels
    gradient, budget = measured(loss, loss.gradient, x, labels)
    return Finding(8 * loss.gradient(8 * x, labels), "==", gradient, 2 * budget)


@law("normalised", change="rows scaled to 1e-8 and 1e8")
def extreme_lengths(loss: Loss, batch: Batch) -> Finding:
    """fp32 rows of length 1e-8 and 1e8 have the loss of others.

    The law detects a constant that is added to a norm, and a square that overflows.
    """
    x, labels = batch.features.float(), batch.labels
    scales = torch.tensor([1e-8, 1e8]).repeat(batch.n)[: batch.n, None]
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(loss.value(scales * x, labels), "==", exact, budget)


@law("normalised", change="the first row is zero")
def zero_row(loss: Loss, batch: Batch) -> Finding:
    """A row of zeros, which has no direction, leaves loss and gradient finite.

    Such a row comes from a dead network or from padding. Its loss is a matter of convention.
    """
    x = batch.features
    x[0] = 0
    both = loss(x, batch.labels).flatten(), loss.gradient(x, batch.labels).flatten()
    return finite(torch.cat(both))
