"""Laws for losses that measure the overlap of masks."""

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, law
from unmuddle.testing.laws.findings import finite
from unmuddle.testing.loss import Loss

SMOOTHING = 0.01  # tolerance: many losses add a constant to numerator and denominator
PIXELS = 400
MASK = "mask = torch.arange(400).view(1, -1).remainder(2).double()\n"


@law(
    "overlap",
    show=MASK + "print(loss(mask, mask))  # 0 for a perfect mask",
)
def perfect_mask(loss: Loss, batch: Batch) -> Finding:
    """A prediction equal to the mask costs nothing."""
    mask, _ = _masks(batch)
    return Finding(loss.raw(mask, mask).mean(), "==", 0.0, SMOOTHING)


@law(
    "overlap",
    show="mask = torch.zeros(1, 16, dtype=torch.float64)\n"
    "p = mask.clone().requires_grad_()\n"
    "value = loss(p, mask)\n"
    "print(value, torch.autograd.grad(value, p)[0])  # finite",
)
def empty_mask(loss: Loss, batch: Batch) -> Finding:
    """An empty mask and an empty prediction have a finite loss and gradient."""
    mask = torch.zeros(batch.n, 16, dtype=torch.float64)
    leaf = mask.clone().requires_grad_()
    with torch.enable_grad():
        value = loss.raw(leaf, mask).mean()
    gradient = torch.autograd.grad(value, leaf, materialize_grads=True)[0]
    return finite(torch.cat([value.detach().view(1), gradient.flatten()]))


@law(
    "overlap",
    show="mask = torch.eye(1, 16, dtype=torch.float64)\nprint(loss(mask, mask))  # not below 0",
)
def one_pixel(loss: Loss, batch: Batch) -> Finding:
    """A prediction equal to a mask of one pixel costs no less than 0.

    The law detects a smoothing constant that is added to the numerator only.
    """
    mask = torch.eye(1, 16, dtype=torch.float64)
    return Finding(0.0, "<=", loss.raw(mask, mask).mean(), 1e-3)


@law(
    "dice",
    show=MASK + "print(loss(1 - mask, mask))  # 1 without overlap",
)
def disjoint_mask(loss: Loss, batch: Batch) -> Finding:
    """A prediction that does not overlap the mask costs 1."""
    mask, _ = _masks(batch)
    return Finding(loss.raw(1 - mask, mask).mean(), "==", 1.0, SMOOTHING)


@law(
    "dice",
    change="prediction and mask swapped",
    show="mask = torch.arange(400).view(1, -1)\n"
    "first, second = (mask % 2).double(), (mask % 3 > 0).double()\n"
    "print(loss(first, second), loss(second, first))",
)
def swapped_masks(loss: Loss, batch: Batch) -> Finding:
    """Prediction and mask may be swapped: `L(a, b) = L(b, a)` for masks of 0 and 1."""
    first, second = _masks(batch)
    value = loss.raw(first, second).mean()
    return Finding(loss.raw(second, first).mean(), "==", value, 1e-9)


def _masks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return two masks `(N, 400)` of different sizes."""
    values = batch.normal(2, batch.n, PIXELS, purpose=31)
    return (values[0] > 0).double(), (values[1] > 0.5).double()
