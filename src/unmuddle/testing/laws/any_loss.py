"""Laws that apply to any loss of a batch of rows."""

import math

import torch

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, as_good_as_its_input, law, measured
from unmuddle.testing.laws.findings import finite, number, same_value
from unmuddle.testing.loss import EPS, Loss, NotApplicableError


@law()
def finite_value(loss: Loss, batch: Batch) -> Finding:
    """Finite features have a finite loss.

    This includes batches whose labels are all different or all equal, and rows that are equal or
    opposite.
    """
    return finite(loss(batch.features, batch.labels))


@law()
def finite_gradient(loss: Loss, batch: Batch) -> Finding:
    """Finite features have a finite gradient.

    A finite value may hide an infinite derivative. Examples are the distance between equal rows
    and the norm of a zero vector.
    """
    return finite(loss.gradient(batch.features, batch.labels))


@law(change="the first row alone")
def one_sample(loss: Loss, batch: Batch) -> Finding:
    """A batch of one sample has a finite loss and gradient.

    The last batch of an epoch may be that small. A mean over an empty set is NaN.
    """
    x, labels = batch.features[:1], batch.labels[:1]
    return finite(torch.cat([loss(x, labels).flatten(), loss.gradient(x, labels).flatten()]))


@law(show="print(loss(x, y), loss(x, y))")
def deterministic(loss: Loss, batch: Batch) -> Finding:
    """Called twice, a loss gives the same bits."""
    x, labels = batch.features, batch.labels
    return Finding(loss(x, labels), "==", loss(x, labels))


@law(show=("before = loss(x, y)\nloss(-3 * x.flip(0) + 1, y.flip(0))\nprint(before, loss(x, y))"))
def stateless(loss: Loss, batch: Batch) -> Finding:
    """Earlier calls change nothing.

    A loss that depends on earlier batches cannot be reproduced from its input.
    """
    x, labels = batch.features, batch.labels
    before = loss(x, labels)
    loss.gradient(-3 * x.flip(0) + 1, labels.flip(0))
    return Finding(loss(x, labels), "==", before)


@law(
    show=(
        "before = x.clone()\n"
        "loss(x.requires_grad_(), y).backward()\n"
        "print((x - before).abs().max())"
    )
)
def inputs_untouched(loss: Loss, batch: Batch) -> Finding:
    """Features and labels are not written to.

    Neither the forward pass nor the backward pass may modify the tensors of the caller.
    """
    x, labels = batch.features, batch.labels
    leaf = x.clone().requires_grad_()
    given = labels.clone()
    value = loss.value(leaf, given)
    if value.requires_grad:
        value.backward()
    found = torch.cat([leaf.detach().flatten(), given.double()])
    return Finding(found, "==", torch.cat([x.flatten(), labels.double()]))


@law(
    show=(
        "torch.manual_seed(0)\n"
        "loss(x, y)\n"
        "after = torch.rand(1)\n"
        "torch.manual_seed(0)\n"
        "print(after, torch.rand(1))"
    )
)
def random_state_untouched(loss: Loss, batch: Batch) -> Finding:
    """Random numbers after the call are those there would have been without it.

    Otherwise, adding the loss to a program changes its random augmentations and its dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch.seed)
        expected = torch.get_rng_state()
        loss.gradient(batch.features, batch.labels)
        return Finding(torch.get_rng_state(), "==", expected)


@law(change="rows and labels in another order")
def permutation(loss: Loss, batch: Batch) -> Finding:
    """The order of the samples does not matter: `L(Px, Py) = L(x, y)`, for each sample too.

    A batch is a set.
    """
    x, labels = batch.features, batch.labels
    order = torch.randperm(batch.n, generator=batch.generator(20))
    expected, budget = measured(loss, loss, x, labels)
    expected = expected[order] if expected.ndim else expected
    return Finding(loss(x[order], labels[order]), "==", expected, budget)


@law(change="rows and labels in another order")
def permuted_gradient(loss: Loss, batch: Batch) -> Finding:
    """The gradient is permuted with the samples: `∇L(Px, Py) = P ∇L(x, y)`.

    This is the derivative of `permutation`. A backward pass that mixes up rows violates this law,
    but not `permutation`. The law does not apply to batches with equal or opposite rows: if several
    rows are equally hard, any of them may be selected as the hardest.
    """
    if batch.structure in ("duplicates", "antipodal") or batch.dim < 2:
        raise NotApplicableError
    x, labels = batch.features, batch.labels
    order = torch.randperm(batch.n, generator=batch.generator(20))
    gradient, budget = measured(loss, loss.gradient, x, labels)
    return Finding(loss.gradient(x[order], labels[order]), "==", gradient[order], budget)


@law(
    show=(
        "wide = torch.full((x.shape[1], 2 * len(x) + 1), torch.nan, dtype=x.dtype)\n"
        "view = wide[:, 1::2].T\n"
        "view.copy_(x)\n"
        "print(loss(x, y), loss(view, y))  # the same rows in another memory layout"
    )
)
def strides(loss: Loss, batch: Batch) -> Finding:
    """The memory layout of the features does not matter.

    The loss is the same if the features are a transposed view of a part of a larger tensor.
    """
    x = batch.features
    wide = torch.full((batch.dim, 2 * batch.n + 1), math.nan, dtype=x.dtype)
    view = wide[:, 1::2].T
    view.copy_(x)
    return same_value(loss, batch, view, batch.labels)


@law(show="print([(x.dtype, loss(x, y).dtype) for x in (x.float(), x.double())])  # equal types")
def result_dtype(loss: Loss, batch: Batch) -> Finding:
    """fp32 features have an fp32 loss and gradient, fp64 features those in fp64.

    An fp64 result doubles the memory of the operations that follow. An fp32 result lacks the
    precision that `gradcheck` needs.
    """
    expected, found = [], []
    for dtype in (torch.float32, torch.float64):
        x = batch.features.to(dtype)
        results = loss(x, batch.labels), loss.gradient(x, batch.labels)
        found += [torch.finfo(result.dtype).bits for result in results]
        expected += [torch.finfo(dtype).bits] * 2
    return Finding(torch.tensor(found), "==", torch.tensor(expected))


@law(
    show=(
        "value = loss(x, y)\n"
        "print(value, value.float().double())  # fp64 with only the digits of fp32"
    )
)
def double_precision(loss: Loss, batch: Batch) -> Finding:
    """fp64 features are worked on in fp64: the result has digits that fp32 has not.

    Otherwise, `gradcheck` cannot be used on the loss, nor on a function that contains it. The law
    checks three fixed batches of its own.
    """
    return Finding(number(loss.eps), "<=", number(EPS))


@law(change="300 x, in fp32")
def large_features(loss: Loss, batch: Batch) -> Finding:
    """fp32 features of some hundreds have a finite loss and gradient.

    In fp32, `exp` overflows from 89 on. A log-sum-exp must therefore subtract the maximum.
    """
    x = 300 * batch.features.float()
    both = loss(x, batch.labels).flatten(), loss.gradient(x, batch.labels).flatten()
    return finite(torch.cat(both))


@law(
    show=(
        "torch.manual_seed(0)\n"
        "v, h = torch.randn_like(x), 1e-4\n"
        "print((loss(x + h * v, y) - loss(x - h * v, y)) / (2 * h))  # the slope along v\n"
        "value = loss(x.requires_grad_(), y)\n"
        "gradient = torch.zeros_like(x)  # of a value without a graph\n"
        "if value.requires_grad:\n"
        "    gradient = torch.autograd.grad(value, x)[0]\n"
        "print((gradient * v).sum())  # by the gradient"
    )
)
def directional_derivative(loss: Loss, batch: Batch) -> Finding:
    """The gradient is the derivative: `⟨∇L, v⟩ = lim (L(x + hv) - L(x - hv)) / 2h`.

    The budget is ten times the difference between the central differences with steps h and h/2
    (their error is O(h^2)), plus the rounding error divided by h. The law does not apply at a kink
    that changes the central difference by more than the budget. Let b(h) be the difference between
    the slopes above and below x. In `2 b(h/2) - b(h)`, the contribution of the curvature cancels,
    and the contribution of a kink remains as h shrinks.
    """
    x, labels = batch.features, batch.labels
    v = batch.normal(batch.n, batch.dim, purpose=21)
    value, rounding = measured(loss, loss.value, x, labels)
    # If the loss always computes in fp32, a small step would measure only rounding errors.
    step = 1e-4 if loss.eps == EPS else 5e-3
    h = step * min(1.0, float(x.norm(dim=1).min()))

    def slopes(h: float) -> tuple[float, float]:
        """Return the slopes above and below x."""
        above, below = (loss.value(x + s * v, labels).detach() for s in (h, -h))
        return float(above - value) / h, float(value - below) / h

    coarse, fine = slopes(h), slopes(h / 2)
    slope = sum(fine) / 2
    budget = 10 * abs(sum(coarse) / 2 - slope) + 4 * rounding / h
    kink = 2 * (fine[0] - fine[1]) - (coarse[0] - coarse[1])
    if abs(kink) / 2 > budget:
        raise NotApplicableError
    return Finding((loss.gradient(x, labels) * v).sum(), "==", number(slope), budget)


@law(
    show=(
        "x.requires_grad_()\n"
        "print(torch.autograd.grad(loss(x, y), x)[0])\n"
        "print(torch.autograd.grad(3 * loss(x, y), x)[0])  # three times as much"
    )
)
def upstream_gradient(loss: Loss, batch: Batch) -> Finding:
    """The gradient of 3 L is three times that of L.

    A custom backward pass must multiply by the incoming gradient, `grad_output`.
    """
    gradient, budget = measured(loss, loss.gradient, batch.features, batch.labels)
    leaf = batch.features.requires_grad_()
    tripled = torch.zeros_like(leaf)
    with torch.enable_grad():
        value = 3 * loss.value(leaf, batch.labels)
    if value.requires_grad:
        (tripled,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return Finding(tripled, "==", 3 * gradient, 3 * budget)


@law(show="print(loss(x, y), loss(x.requires_grad_(), y))")
def without_gradient(loss: Loss, batch: Batch) -> Finding:
    """The value is the same under `no_grad`, in inference mode, and for features that need none."""
    x, labels = batch.features, batch.labels
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        values = [loss.value(leaf, labels)]
    with torch.inference_mode():
        values.append(loss.value(x, labels).double())
    values.append(loss.value(x, labels))
    expected, budget = measured(loss, loss.value, leaf, labels)
    return Finding(torch.stack([value.clone() for value in values]), "==", expected, budget)


@law(change="one entry is NaN")
def nan_is_not_hidden(loss: Loss, batch: Batch) -> Finding:
    """A NaN among the features makes the loss NaN.

    If a loss hides the NaN, training continues with a network that has already diverged. The law
    does not apply if the loss does not depend on that row, for example because it is in no pair.
    """
    x = batch.features
    moved = x.clone()
    moved[batch.n // 2] = 1 - 2 * moved[batch.n // 2]
    if torch.equal(loss.value(moved, batch.labels), loss.value(x, batch.labels)):
        raise NotApplicableError
    x[batch.n // 2, batch.dim // 2] = math.nan
    try:
        return Finding(loss.value(x, batch.labels), "is NaN")
    except (RuntimeError, ValueError):  # an error does not hide the NaN
        return Finding(math.nan, "is NaN")


@law(change="in fp32")
def single_precision(loss: Loss, batch: Batch) -> Finding:
    """The fp32 value is as good as its input: within what rounding the features changes.

    The budget is 64 times the largest change of the fp64 value under three random perturbations of
    the features of the size of fp32 rounding, plus 64 eps (1 + |L|).
    """
    x, labels = batch.features.float(), batch.labels
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(loss.value(x, labels), "==", exact, budget)


@law(change="in fp32")
def single_precision_gradient(loss: Loss, batch: Batch) -> Finding:
    """The fp32 gradient is as good as its input: as `single_precision`, of the gradient.

    The law does not apply to features of dimension 1. There, the gradient of a loss of directions
    is 0, and its computed value is only the rounding error that remains when terms cancel.
    """
    if batch.dim < 2:
        raise NotApplicableError
    x, labels = batch.features.float(), batch.labels
    exact, budget = as_good_as_its_input(loss, loss.gradient, x, labels)
    return Finding(loss.gradient(x, labels), "==", exact, budget)


@law(change="in bf16")
def half_precision(loss: Loss, batch: Batch) -> Finding:
    """The bf16 value is as good as its input: as `single_precision`, in bf16.

    The law does not apply if torch does not implement an operation of the loss in bf16.
    """
    x, labels = batch.features.bfloat16(), batch.labels
    try:
        found = loss.value(x, labels)
    except NotImplementedError as error:
        raise NotApplicableError from error
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(found, "==", exact, budget)
