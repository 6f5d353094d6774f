"""Laws that losses obey: each says what must hold, and why.

`check_loss` tries them on many batches. Numbers are compared in fp64 with the loss's own rounding
as the measure (`measured`): how far its fp32 result is from its fp64 result, scaled to fp64.
"""

import copy
import math

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch, ContrastiveBatch
from unmuddle.testing.law import Finding, Law, NotApplicable, as_good_as_its_input, law, measured
from unmuddle.testing.loss import EPS, Loss
from unmuddle.testing.tolerance import saved_bytes


def _same_value(loss: Loss, batch: Batch, x: Tensor, labels: Tensor) -> Finding:
    """The loss of `x` and `labels` is that of the batch."""
    value, budget = measured(loss, loss.value, batch.features, batch.labels)
    return Finding(loss.value(x, labels), "==", value, budget)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _finite(values: Tensor) -> Finding:
    return Finding(values.isfinite(), "==", torch.tensor(True))


def _need_positives(batch: Batch) -> None:
    """Say nothing where no label occurs twice."""
    if batch.classes >= batch.n:
        raise NotApplicable


# --- any loss ------------------------------------------------------------------------------------


@law()
def finite_value(loss: Loss, batch: Batch) -> Finding:
    """Finite features have a finite loss.

    Also where no two labels agree, where all do, and for rows that are equal or opposite.
    """
    return _finite(loss(batch.features, batch.labels))


@law()
def finite_gradient(loss: Loss, batch: Batch) -> Finding:
    """Finite features have a finite gradient.

    A finite value may hide an infinite derivative: a distance of equal rows, a norm of nothing.
    """
    return _finite(loss.gradient(batch.features, batch.labels))


@law()
def one_sample(loss: Loss, batch: Batch) -> Finding:
    """A batch of one sample has a finite loss and gradient.

    The last batch of an epoch may be that small; a mean over nothing is NaN.
    """
    x, labels = batch.features[:1], batch.labels[:1]
    return _finite(torch.cat([loss(x, labels).flatten(), loss.gradient(x, labels).flatten()]))


@law()
def deterministic(loss: Loss, batch: Batch) -> Finding:
    """Called twice, a loss gives the same bits."""
    x, labels = batch.features, batch.labels
    return Finding(loss(x, labels), "==", loss(x, labels))


@law()
def stateless(loss: Loss, batch: Batch) -> Finding:
    """What was asked before changes nothing.

    A loss that keeps something of earlier batches cannot be reproduced from its input.
    """
    x, labels = batch.features, batch.labels
    before = loss(x, labels)
    loss.gradient(-3 * x.flip(0) + 1, labels.flip(0))
    return Finding(loss(x, labels), "==", before)


@law()
def inputs_untouched(loss: Loss, batch: Batch) -> Finding:
    """Features and labels are not written to.

    The caller's tensors are the caller's, in the forward pass and in the backward pass.
    """
    x, labels = batch.features, batch.labels
    leaf = x.clone().requires_grad_()
    given = labels.clone()
    value = loss.value(leaf, given)
    if value.requires_grad:
        value.backward()
    found = torch.cat([leaf.detach().flatten(), given.double()])
    return Finding(found, "==", torch.cat([x.flatten(), labels.double()]))


@law()
def random_state_untouched(loss: Loss, batch: Batch) -> Finding:
    """Random numbers after the call are those there would have been without it.

    Otherwise adding the loss to a program changes its augmentations and its dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch.seed)
        expected = torch.get_rng_state()
        loss.gradient(batch.features, batch.labels)
        return Finding(torch.get_rng_state(), "==", expected)


@law()
def permutation(loss: Loss, batch: Batch) -> Finding:
    """The order of the samples does not matter: `L(Px, Py) = L(x, y)`, for each sample too.

    A batch is a set.
    """
    x, labels = batch.features, batch.labels
    order = torch.randperm(batch.n, generator=batch.generator(20))
    expected, budget = measured(loss, loss, x, labels)
    expected = expected[order] if expected.ndim else expected
    return Finding(loss(x[order], labels[order]), "==", expected, budget)


@law()
def permuted_gradient(loss: Loss, batch: Batch) -> Finding:
    """The gradient is permuted with the samples: `∇L(Px, Py) = P ∇L(x, y)`.

    The derivative of the law before. A backward pass that mixes up rows breaks this one alone. Not
    asked where rows are equal or opposite: a hardest one of several alike may be any of them.
    """
    if batch.structure in ("duplicates", "antipodal") or batch.dim < 2:
        raise NotApplicable
    x, labels = batch.features, batch.labels
    order = torch.randperm(batch.n, generator=batch.generator(20))
    gradient, budget = measured(loss, loss.gradient, x, labels)
    return Finding(loss.gradient(x[order], labels[order]), "==", gradient[order], budget)


@law()
def strides(loss: Loss, batch: Batch) -> Finding:
    """Where the numbers lie in memory does not matter.

    The features as a transposed view and as a part of a larger tensor have the same loss.
    """
    x = batch.features
    wide = torch.full((batch.dim, 2 * batch.n + 1), math.nan, dtype=x.dtype)
    view = wide[:, 1::2].T
    view.copy_(x)
    return _same_value(loss, batch, view, batch.labels)


@law()
def result_dtype(loss: Loss, batch: Batch) -> Finding:
    """fp32 features have an fp32 loss and gradient, fp64 features those in fp64.

    A result in fp64 doubles the memory of what follows, one in fp32 loses what `gradcheck` needs.
    """
    expected, found = [], []
    for dtype in (torch.float32, torch.float64):
        x = batch.features.to(dtype)
        results = loss(x, batch.labels), loss.gradient(x, batch.labels)
        found += [torch.finfo(result.dtype).bits for result in results]
        expected += [torch.finfo(dtype).bits] * 2
    return Finding(torch.tensor(found), "==", torch.tensor(expected))


@law()
def double_precision(loss: Loss, batch: Batch) -> Finding:
    """fp64 features are worked on in fp64: the result has digits that fp32 has not.

    Otherwise `gradcheck` cannot be used on it, nor on what it is part of. Looked at in three
    batches of the law's own.
    """
    return Finding(_number(loss.eps), "<=", _number(EPS))


@law()
def large_features(loss: Loss, batch: Batch) -> Finding:
    """fp32 features of some hundreds have a finite loss and gradient.

    `exp` overflows from 89 on: a logarithm of sums of exponentials has to take out the largest.
    """
    x = 300 * batch.features.float()
    both = loss(x, batch.labels).flatten(), loss.gradient(x, batch.labels).flatten()
    return _finite(torch.cat(both))


@law()
def directional_derivative(loss: Loss, batch: Batch) -> Finding:
    """The gradient is the derivative: `⟨∇L, v⟩ = lim (L(x + hv) - L(x - hv)) / 2h`.

    Budget: ten times what differences of h and h/2 differ by (their error is O(h^2)), and rounding
    over h. Not asked at a kink that moves the difference by more than that: where the slopes above
    and below x are apart by b(h), `2 b(h/2) - b(h)` stays as h shrinks, without the curvature.
    """
    x, labels = batch.features, batch.labels
    v = batch.normal(batch.n, batch.dim, purpose=21)
    value, rounding = measured(loss, loss.value, x, labels)
    h = 1e-4 * min(1.0, float(x.norm(dim=1).min()))

    def slopes(h: float) -> tuple[float, float]:
        """Above and below x."""
        above, below = (loss.value(x + s * v, labels).detach() for s in (h, -h))
        return float(above - value) / h, float(value - below) / h

    coarse, fine = slopes(h), slopes(h / 2)
    slope = sum(fine) / 2
    budget = 10 * abs(sum(coarse) / 2 - slope) + 4 * rounding / h
    kink = 2 * (fine[0] - fine[1]) - (coarse[0] - coarse[1])
    if abs(kink) / 2 > budget:
        raise NotApplicable
    return Finding((loss.gradient(x, labels) * v).sum(), "==", _number(slope), budget)


@law()
def upstream_gradient(loss: Loss, batch: Batch) -> Finding:
    """The gradient of 3 L is three times that of L.

    A backward pass of one's own has to multiply by what comes from above.
    """
    x, labels = batch.features, batch.labels

    def three_times(features: Tensor, labels: Tensor) -> Tensor:
        return 3 * loss.value(features, labels)

    tripled = loss.like(three_times)
    gradient, budget = measured(loss, loss.gradient, x, labels)
    return Finding(tripled.gradient(x, labels), "==", 3 * gradient, 3 * budget)


@law()
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


@law()
def nan_is_not_hidden(loss: Loss, batch: Batch) -> Finding:
    """A NaN among the features makes the loss NaN.

    A loss that drops it trains on with a network that has already broken. Not asked where the loss
    does not depend on that row: where it is one of no pair, say.
    """
    x = batch.features
    moved = x.clone()
    moved[batch.n // 2] = 1 - 2 * moved[batch.n // 2]
    if torch.equal(loss.value(moved, batch.labels), loss.value(x, batch.labels)):
        raise NotApplicable
    x[batch.n // 2, batch.dim // 2] = math.nan
    return Finding(loss.value(x, batch.labels).isnan(), "==", torch.tensor(True))


@law()
def single_precision(loss: Loss, batch: Batch) -> Finding:
    """The fp32 value is as good as its input: within what rounding the features changes.

    Budget: 64 times the largest change of the fp64 value in three roundings of the features to
    fp32 at random, and 64 eps (1 + |L|).
    """
    x, labels = batch.features.float(), batch.labels
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(loss.value(x, labels), "==", exact, budget)


@law()
def single_precision_gradient(loss: Loss, batch: Batch) -> Finding:
    """The fp32 gradient is as good as its input: as `single_precision`, of the gradient.

    Not asked on a line, where directions have no gradient: it is what is left when terms cancel.
    """
    if batch.dim < 2:
        raise NotApplicable
    x, labels = batch.features.float(), batch.labels
    exact, budget = as_good_as_its_input(loss, loss.gradient, x, labels)
    return Finding(loss.gradient(x, labels), "==", exact, budget)


@law()
def half_precision(loss: Loss, batch: Batch) -> Finding:
    """The bf16 value is as good as its input: as `single_precision`, in bf16.

    Not asked where torch has no bf16 for an operation of the loss.
    """
    x, labels = batch.features.bfloat16(), batch.labels
    try:
        found = loss.value(x, labels)
    except NotImplementedError as error:
        raise NotApplicable from error
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(found, "==", exact, budget)


# --- losses of pairs of rows ---------------------------------------------------------------------


@law("pairwise")
def rotation(loss: Loss, batch: Batch) -> Finding:
    """Rotating or reflecting all rows together changes nothing: `L(xQ) = L(x)`, `QQᵀ = 1`.

    Products and distances of rows are all that such a loss sees, and Q keeps them.
    """
    q = torch.linalg.qr(batch.normal(batch.dim, batch.dim, purpose=22)).Q
    return _same_value(loss, batch, batch.features @ q, batch.labels)


@law("pairwise")
def padding(loss: Loss, batch: Batch) -> Finding:
    """Features that are zero everywhere change nothing: `L([x, 0]) = L(x)`.

    They add nothing to a product or a distance. A mean over features in place of a sum would see
    them.
    """
    x = batch.features
    return _same_value(loss, batch, torch.cat([x, torch.zeros_like(x)], 1), batch.labels)


@law("pairwise")
def no_torque(loss: Loss, batch: Batch) -> Finding:
    """`xᵀ ∇L` is symmetric.

    `rotation` for a small angle: for every antisymmetric A, `d/dt L(x exp(tA)) = ⟨∇L, xA⟩ = 0`.
    """
    x, labels = batch.features, batch.labels
    gradient, budget = measured(loss, loss.gradient, x, labels)
    product = x.T @ gradient
    return Finding(product, "==", product.T, batch.n * float(x.abs().max()) * budget)


# --- losses of directions ------------------------------------------------------------------------


@law("normalised")
def rescaling(loss: Loss, batch: Batch) -> Finding:
    """The length of a row does not matter: `L(c x) = L(x)` for every row its own c > 0."""
    lengths = batch.normal(batch.n, 1, purpose=23).exp()
    return _same_value(loss, batch, lengths * batch.features, batch.labels)


@law("normalised")
def no_radial_gradient(loss: Loss, batch: Batch) -> Finding:
    """No row is pushed along itself: `⟨x_i, ∇_i L⟩ = 0`.

    The derivative of `rescaling` by c_i.
    """
    x, labels = batch.features, batch.labels
    gradient, budget = measured(loss, loss.gradient, x, labels)
    budget *= batch.dim * float(x.abs().max())
    return Finding((x * gradient).sum(1), "==", torch.tensor(0.0), budget)


@law("normalised")
def inverse_gradient(loss: Loss, batch: Batch) -> Finding:
    """The gradient shrinks as the rows grow: `∇L(c x) = ∇L(x) / c`.

    From `L(c x) = L(x)` by the chain rule; c = 8, which no number format rounds.
    """
    x, labels = batch.features, batch.labels
    gradient, budget = measured(loss, loss.gradient, x, labels)
    return Finding(8 * loss.gradient(8 * x, labels), "==", gradient, 2 * budget)


@law("normalised")
def extreme_lengths(loss: Loss, batch: Batch) -> Finding:
    """fp32 rows of length 1e-8 and 1e8 have the loss of others.

    A constant that is added to a norm, or a square that overflows, shows here.
    """
    x, labels = batch.features.float(), batch.labels
    scales = torch.tensor([1e-8, 1e8]).repeat(batch.n)[: batch.n, None]
    exact, budget = as_good_as_its_input(loss, loss.value, x, labels)
    return Finding(loss.value(scales * x, labels), "==", exact, budget)


@law("normalised")
def zero_row(loss: Loss, batch: Batch) -> Finding:
    """A row of zeros, which has no direction, leaves loss and gradient finite.

    It comes of a dead network or of padding; what the loss is there is a convention.
    """
    x = batch.features
    x[0] = 0
    both = loss(x, batch.labels).flatten(), loss.gradient(x, batch.labels).flatten()
    return _finite(torch.cat(both))


# --- losses of the scores of classes -------------------------------------------------------------


@law("logits")
def renamed_scores(loss: Loss, batch: Batch) -> Finding:
    """Classes may be numbered in any order, if scores and labels both are."""
    order = torch.randperm(batch.dim, generator=batch.generator(27))
    x = torch.empty_like(batch.features)
    x[:, order] = batch.features
    return _same_value(loss, batch, x, order[batch.labels % batch.dim])


@law("logits")
def informative_scores(loss: Loss, batch: Batch) -> Finding:
    """A larger score of the label costs less than a larger score of another class.

    Otherwise training by the loss would not bring the labels out.
    """
    if batch.dim < 2:
        raise NotApplicable
    of_label = torch.nn.functional.one_hot(batch.labels % batch.dim, batch.dim).double()
    x = batch.features
    value, budget = measured(loss, loss.value, x + of_label, batch.labels)
    return Finding(value, "<=", loss.value(x + of_label.roll(1, 1), batch.labels), -budget)


# --- losses that compare labels ------------------------------------------------------------------


@law("supervised")
def renaming(loss: Loss, batch: Batch) -> Finding:
    """The names of the classes do not matter: `L(x, f(y)) = L(x, y)` for every injective f.

    A label says which samples belong together.
    """
    names = torch.randperm(1000, generator=batch.generator(24))[: batch.classes]
    return _same_value(loss, batch, batch.features, names[batch.labels])


@law("supervised")
def large_labels(loss: Loss, batch: Batch) -> Finding:
    """Labels may be any int64, such as hashes: near 2^62, and 2^32 apart.

    fp32 cannot tell the first apart, int32 the second.
    """
    names = torch.tensor([2**62, 2**62 + 2**32, 2**62 + 1])
    labels = names[batch.labels % 3] + batch.labels // 3 * 2
    return _same_value(loss, batch, batch.features, labels)


@law("supervised")
def label_dtype(loss: Loss, batch: Batch) -> Finding:
    """int32 labels are as good as int64."""
    return _same_value(loss, batch, batch.features, batch.labels.int())


@law("supervised")
def informative(loss: Loss, batch: Batch) -> Finding:
    """Labels that fit tight clusters cost less than labels that cut across them.

    Otherwise training by the loss would not bring classes together.
    """
    # Clusters are on coordinate axes and their opposites, so that no two coincide.
    if not 2 <= batch.classes <= min(batch.n / 2, 2 * batch.dim) or batch.dim < 2:
        raise NotApplicable
    axes = torch.cat([torch.eye(batch.dim), -torch.eye(batch.dim)]).double()
    members = torch.arange(batch.n) % batch.classes
    x = axes[members] + 0.01 * batch.features.clamp(-3, 3)
    across = torch.arange(batch.n) // batch.classes
    value, budget = measured(loss, loss.value, x, members)
    return Finding(value, "<=", loss.value(x, across), -budget)


# --- the supervised contrastive loss -------------------------------------------------------------


@law("contrastive")
def equal_rows(loss: Loss, batch: Batch) -> Finding:
    """Equal rows have the loss `log(N - 1)`, whatever the temperature.

    All similarities are alike, so each of the N - 1 others gets the same probability.
    """
    _need_positives(batch)
    x = batch.features[:1].expand(batch.n, -1).clone()
    value, budget = measured(loss, loss.value, x, batch.labels)
    return Finding(value, "==", _number(math.log(batch.n - 1)), budget)


@law("contrastive")
def lower_bound(loss: Loss, batch: Batch) -> Finding:
    """`L_i >= log |P(i)|`, in the mean over anchors.

    The positives' similarities are part of the sum in the logarithm, and the logarithm of their
    mean exponential is at least their mean (Jensen).
    """
    _need_positives(batch)
    labels = batch.labels
    positives = (labels[:, None] == labels).sum(1) - 1
    bound = positives[positives > 0].double().log().mean()
    return Finding(bound, "<=", *measured(loss, loss.value, batch.features, labels))


@law("contrastive", "temperature")
def upper_bound(loss: Loss, batch: Batch) -> Finding:
    """`L_i <= 2/τ + log(N - 1)`.

    Similarities are within ±1/τ: the sum is at most (N - 1) exp(1/τ), the mean at least -1/τ.
    """
    _need_positives(batch)
    x, labels = batch.features, batch.labels
    value, budget = measured(loss, loss.value, x, labels, temperature=0.5)
    return Finding(value, "<=", _number(2 / 0.5 + math.log(batch.n - 1)), budget)


@law("contrastive")
def stranger(loss: Loss, batch: Batch) -> Finding:
    """A sample of a class of its own raises the loss of all others.

    It adds a term to every sum in a logarithm, and to no mean over positives; its own loss, of no
    positive, is not in the mean.
    """
    _need_positives(batch)
    x, labels = batch.features, batch.labels
    more = torch.cat([x, batch.normal(1, batch.dim, purpose=25)])
    more_labels = torch.cat([labels, labels.max()[None] + 1])
    value, budget = measured(loss, loss.value, x, labels)
    return Finding(value, "<=", loss.value(more, more_labels), budget)


@law("contrastive", "temperature", "normalize")
def temperature_is_a_scale(loss: Loss, batch: Batch) -> Finding:
    """Without normalising, `L(c x, c^2 τ) = L(x, τ)`.

    Features and temperature enter as `x_i · x_j / τ` only.
    """
    x, labels = batch.features, batch.labels
    value, budget = measured(loss, loss.value, x, labels, temperature=0.5, normalize=False)
    found = loss.value(2 * x, labels, temperature=2.0, normalize=False)
    return Finding(found, "==", value, budget)


@law("contrastive", "temperature", "normalize")
def temperature_gradient(loss: Loss, batch: Batch) -> Finding:
    """`∂L/∂τ = -(1/2τ) Σ_i ⟨x_i, ∂L/∂x_i⟩`, without normalising.

    The derivative of the law before by c (Euler). Asked by differences of τ; budget as there.
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


@law("contrastive", "positives")
def in_below_out(loss: Loss, batch: Batch) -> Finding:
    """The mean inside the logarithm is at most that outside: `L_in <= L_out`.

    Jensen's inequality; section 3.2.2 of Khosla et al.
    """
    x, labels = batch.features, batch.labels
    inside = loss.value(x, labels, positives="in")
    return Finding(inside, "<=", *measured(loss, loss.value, x, labels, positives="out"))


# --- losses with more to say ---------------------------------------------------------------------


@law("views")
def order_of_views(loss: Loss, batch: Batch) -> Finding:
    """The order of the views of each sample does not matter."""
    more = ContrastiveBatch(batch, views=3)
    x, labels = more.features, more.labels
    order = torch.stack(
        [torch.randperm(3, generator=batch.generator(26 + i)) for i in range(batch.n)]
    )
    shuffled = x.gather(1, order[:, :, None].expand_as(x))
    return Finding(loss.value(shuffled, labels), "==", *measured(loss, loss.value, x, labels))


@law("views")
def views_are_rows(loss: Loss, batch: Batch) -> Finding:
    """V views of B samples are B·V samples, whose labels repeat."""
    more = ContrastiveBatch(batch, views=2)
    x, labels = more.features, more.labels
    flat = loss.value(x.flatten(0, 1), labels.repeat_interleave(2))
    return Finding(flat, "==", *measured(loss, loss.value, x, labels))


@law("soft")
def one_hot(loss: Loss, batch: Batch) -> Finding:
    """One-hot memberships are integer labels."""
    hot = torch.nn.functional.one_hot(batch.labels, max(batch.classes, 2)).double()
    return _same_value(loss, batch, batch.features, hot)


@law("soft")
def scale_of_memberships(loss: Loss, batch: Batch) -> Finding:
    """Memberships twice as large are the same: positives are weighed by their share."""
    soft = ContrastiveBatch(batch).soft_labels
    x = batch.features
    return Finding(loss.value(x, 2 * soft), "==", *measured(loss, loss.value, x, soft))


@law("contrastive", "mask")
def mask_of_labels(loss: Loss, batch: Batch) -> Finding:
    """The mask of equal labels is as good as the labels."""
    labels = batch.labels
    mask = (labels[:, None] == labels).double()
    x = batch.features
    found = loss(x, None, mask=mask).mean()
    return Finding(found, "==", *measured(loss, loss.value, x, labels))


@law("contrastive", "weight")
def equal_weights(loss: Loss, batch: Batch) -> Finding:
    """Equal weights change nothing."""
    x, labels = batch.features, batch.labels
    weight = torch.full((batch.n,), 0.3, dtype=x.dtype)
    return Finding(
        loss.value(x, labels, weight=weight), "==", *measured(loss, loss.value, x, labels)
    )


@law("contrastive", "weight")
def shared_weights(loss: Loss, batch: Batch) -> Finding:
    """Weights w and 1 - w share the loss out: weighted sums add up to the plain one.

    A weighted mean times its weights is the weighted sum, over the anchors with a positive.
    """
    _need_positives(batch)
    x, labels = batch.features, batch.labels
    share = ContrastiveBatch(batch).weight
    share = share / (1 + share.max())
    anchors = _anchors_with_positives(labels).double()
    parts = [loss.value(x, labels, weight=w) * (w * anchors).sum() for w in (share, 1 - share)]
    value, budget = measured(loss, loss.value, x, labels)
    return Finding(parts[0] + parts[1], "==", value * anchors.sum(), 4 * batch.n * budget)


@law("contrastive", "weight", "reduction")
def zero_weight(loss: Loss, batch: Batch) -> Finding:
    """Anchors of weight 0 are not in the mean."""
    x, labels = batch.features, batch.labels
    weight = (torch.arange(batch.n) % 2).to(x)
    counted = _anchors_with_positives(labels) & (weight > 0)
    if not counted.any():
        raise NotApplicable
    value, budget = measured(loss, loss.value, x, labels, weight=weight)
    return Finding(value, "==", loss(x, labels, reduction="none")[counted].mean(), budget)


@law("contrastive", "ignore_index")
def ignored_samples(loss: Loss, batch: Batch) -> Finding:
    """Ignored samples are as good as absent."""
    more = ContrastiveBatch(batch)
    x, labels = batch.features, more.ignored_labels
    kept = labels != -100
    value, budget = measured(loss, loss.value, x, labels, ignore_index=-100)
    return Finding(value, "==", loss.value(x[kept], labels[kept]), budget)


@law("contrastive", "reduction")
def reductions_agree(loss: Loss, batch: Batch) -> Finding:
    """`"sum"` is the sum of `"none"`, and `"mean"` their mean over the anchors that have one."""
    x, labels = batch.features, batch.labels
    each = loss(x, labels, reduction="none")
    anchors = _anchors_with_positives(labels).sum().clamp(min=1)
    mean, budget = measured(loss, loss.value, x, labels, reduction="mean")
    found = torch.stack([loss.value(x, labels, reduction="sum"), mean * anchors])
    return Finding(found, "==", each.sum(), batch.n * budget)


@law("contrastive", "keys", "key_labels", "contrast_mode", "views")
def keys_are_second_views(loss: Loss, batch: Batch) -> Finding:
    """Keys are rows that are contrasted with and are no anchors, as second views are.

    `L([x, k], contrast_mode="one") = L(x, keys=k)`: in both, the first views are the anchors.
    """
    x, k = ContrastiveBatch(batch).features.unbind(1)
    labels = batch.labels
    found = loss.value(x, labels, keys=k, key_labels=labels)
    both = torch.stack([x, k], 1)
    return Finding(found, "==", *measured(loss, loss.value, both, labels, contrast_mode="one"))


@law("linear")
def linear_memory(loss: Loss, batch: Batch) -> Finding:
    """What is kept for the backward grows no faster than the batch.

    Bytes that 8,192 rows keep, against 2.2 times those of 4,096 rows; with an N x N matrix it would
    be 4 times as much. What is kept of smaller batches is no matter.
    """
    if (batch.n, batch.dim, batch.classes) != (2, 1, 1):
        raise NotApplicable  # sizes are the law's own, so a few tries are enough

    def kept(n: int) -> Tensor:
        many = Batch(n, 16, 8, seed=batch.seed)
        x = many.features.float().requires_grad_()
        return torch.tensor(saved_bytes(loss.value, x, many.labels))

    return Finding(kept(8192), "<=", 2.2 * kept(4096))


# --- losses that are modules ---------------------------------------------------------------------


@law("module")
def deep_copy(loss: Loss, batch: Batch) -> Finding:
    """A deep copy of the module is the same loss."""
    twin = loss.like(copy.deepcopy(loss.fn))
    return Finding(twin(batch.features, batch.labels), "==", loss(batch.features, batch.labels))


@law("module")
def state_is_all(loss: Loss, batch: Batch) -> Finding:
    """A copy whose parameters and buffers were overwritten is whole again with `state_dict`."""
    twin = copy.deepcopy(loss.fn)
    assert isinstance(twin, torch.nn.Module)  # what the law is for
    state = {name: value.clone() for name, value in twin.state_dict().items()}
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    twin.load_state_dict(state)
    return Finding(
        loss.like(twin)(batch.features, batch.labels), "==", loss(batch.features, batch.labels)
    )


def _anchors_with_positives(labels: Tensor) -> Tensor:
    return (labels[:, None] == labels).sum(1) > 1


LAWS: dict[str, Law] = {name: found for name, found in globals().items() if isinstance(found, Law)}
