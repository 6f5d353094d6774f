"""Laws for losses that pull rows of the same class together and push other rows away."""

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, as_good_as_its_input, law, measured
from unmuddle.testing.laws.findings import finite, same_value
from unmuddle.testing.loss import Loss, NotApplicableError

FAR = 100.0  # beyond any margin


@law("distances", change="all rows moved by the same vector")
def translation(loss: Loss, batch: Batch) -> Finding:
    """Moving all rows together changes nothing: `L(x + c) = L(x)`."""
    moved = batch.features + batch.normal(batch.dim, purpose=28)
    return same_value(loss, batch, moved, batch.labels)


@law("distances", change="the same rows in fp32")
def far_from_origin(loss: Loss, batch: Batch) -> Finding:
    """Rows far from the origin have the same loss in fp32 as in fp64.

    `|a|^2 + |b|^2 - 2 ab` loses precision to cancellation, and `|a - b|^2` does not.
    """
    x, labels = (batch.features + 1e4).float(), batch.labels
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(loss.value(x, labels), "==", exact, budget)


@law("negatives", change="a class moved next to another")
def near_negative(loss: Loss, batch: Batch) -> Finding:
    """A negative that is near costs more than one that is far.

    The batch has three tight classes. They are either far from one another, or two of them almost
    coincide. The law detects a margin with the wrong sign, an anchor that is its own hardest
    negative, and mining of the farthest negative instead of the nearest.
    """
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    near, far = (_classes(batch, places) for places in ((0, 0, 1), (0, 2, 1)))
    value, budget = measured(loss, loss.value, far, labels)
    return Finding(value, "<", loss.value(near, labels), budget)


@law("hinge", change="the other class moved from an orthogonal to the opposite direction")
def far_negative(loss: Loss, batch: Batch) -> Finding:
    """A negative beyond the margin does not matter: farther is not better."""
    far, farther = (
        torch.zeros(4, 3, dtype=torch.float64).index_put(
            (torch.arange(4), torch.tensor([0, 0, axis, axis])),
            FAR * torch.tensor([1.0, 1.0, sign, sign], dtype=torch.float64),
        )
        for axis, sign in ((1, 1.0), (0, -1.0))
    )
    turn = torch.linalg.qr(batch.normal(3, 3, purpose=29)).Q
    labels = torch.tensor([0, 0, 1, 1])
    value, budget = measured(loss, loss.value, far @ turn, labels)
    return Finding(loss.value(farther @ turn, labels), "==", value, budget)


@law(
    "hinge",
    "mean",
    change="five classes of three rows, against four classes of two",
    show="def alike(classes, members):\n"
    "    y = torch.arange(classes).repeat_interleave(members)\n"
    "    of_class = 0.2 * torch.nn.functional.one_hot(y, 5)\n"
    "    return 0.1 * torch.cat([of_class, torch.eye(len(y), 15)], 1).double(), y\n"
    "print(loss(*alike(4, 2)), loss(*alike(5, 3)))  # equal if no row is paired with itself",
)
def own_pairs(loss: Loss, batch: Batch) -> Finding:
    """Class sizes do not matter where all pairs are alike: no row is in a pair with itself.

    The law also detects a mean whose divisor is not the number of pairs, triplets or anchors. Four
    classes of two rows, and five classes of three rows, have one positive pair for every six
    negative pairs. All positive pairs have the same distance, and so have all negative pairs.
    """

    def alike(classes: int, members: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(members)
        of_class = 0.2 * torch.nn.functional.one_hot(labels, 5)
        x = torch.cat([of_class, torch.eye(len(labels), 15)], 1)
        return 0.1 * x.double(), labels

    value, budget = measured(loss, loss.value, *alike(4, 2))
    return Finding(loss.value(*alike(5, 3)), "==", value, budget)


@law("margin", "option margin", change="margin 0.5")
def larger_margin(loss: Loss, batch: Batch) -> Finding:
    """A larger margin never costs less."""
    x, labels = batch.features, batch.labels
    value, budget = measured(loss, loss.value, x, labels, margin=0.1)
    return Finding(value, "<=", loss.value(x, labels, margin=0.5), budget)


@law("margin", "option margin", change="margin 0.5")
def margin_acts(loss: Loss, batch: Batch) -> Finding:
    """A larger margin costs more where classes are close together."""
    if batch.dim < 2:
        raise NotApplicableError
    x, labels = 0.1 * batch.features, batch.labels
    if "hinge" in loss.traits:
        x, labels = _classes(batch, (0, 0, 1)), torch.tensor([0, 0, 1, 1, 2, 2])
    value, budget = measured(loss, loss.value, x, labels, margin=0.1)
    return Finding(value, "<", loss.value(x, labels, margin=0.5), budget)


@law("proxies", change="rows equal to the proxies of other classes")
def own_proxy(loss: Loss, batch: Batch) -> Finding:
    """Rows equal to the proxies of their classes cost less than rows equal to other proxies."""
    proxies = loss.proxies
    if len(proxies) < 2:
        raise NotApplicableError
    labels = torch.arange(len(proxies))
    value, budget = measured(loss, loss.value, proxies, labels)
    return Finding(value, "<", loss.value(proxies.roll(1, 0), labels), budget)


@law("proxies", change="rows equal to the proxies of their classes")
def gradient_at_proxy(loss: Loss, batch: Batch) -> Finding:
    """A row equal to the proxy of its class, or opposite to it, has a finite gradient.

    The derivative of the arc cosine is infinite at 1 and -1.
    """
    labels = torch.arange(len(loss.proxies))
    rows = [scale * loss.proxies for scale in (1, -1, 3, 7, 0.1)]  # their cosines round differently
    rows += [row.float() for row in rows]
    return finite(torch.cat([loss.gradient(row, labels).double() for row in rows]))


def _classes(batch: Batch, places: tuple[int, ...]) -> Tensor:
    """Place two rows of each class near a corner of a large simplex."""
    corners = FAR * torch.eye(3, dtype=torch.float64)[list(places)].repeat_interleave(2, 0)
    return corners + (0.01 * batch.normal(6, 3, purpose=30).clamp(-3, 3)).round(decimals=2)
