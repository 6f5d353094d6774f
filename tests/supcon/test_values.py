"""The loss against two oracles that share no code with it: a scalar loop and hand-worked values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from budget import assert_within_budget
from unmuddle import supcon_loss

IMPLS = ["reference", "tiled"]


def scalar_loop(
    features: Tensor, positive: Tensor, temperature: float, included: list[bool] | None = None
) -> Tensor:
    """Eq. 2, one pair at a time. `features` `(N, D)`, `positive` `(N, N)` weights; gives `(N,)`."""
    rows = [row / max(math.sqrt(sum(v * v for v in row.tolist())), 1e-300) for row in features]
    n = len(rows)
    included = included or [True] * n
    losses = []
    for i in range(n):
        others = [j for j in range(n) if j != i and included[j]]
        total = sum(positive[i, j].item() for j in others)
        if not included[i] or total <= 0:
            losses.append(0.0)
            continue
        s = {j: (rows[i] @ rows[j]).item() / temperature for j in others}
        m = max(s.values())
        lse = m + math.log(sum(math.exp(s[j] - m) for j in others))
        losses.append(lse - sum(positive[i, j].item() * s[j] for j in others) / total)
    return torch.tensor(losses, dtype=torch.float64)


def same_class(labels: Tensor) -> Tensor:
    return (labels[:, None] == labels).double()


def dense_eager(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The usual dense computation in the features' dtype, mean over anchors with a positive."""
    z = torch.nn.functional.normalize(features)
    s = z @ z.T / temperature
    self_pair = torch.eye(len(z), dtype=torch.bool)
    log_p = s - s.masked_fill(self_pair, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~self_pair
    count = positive.sum(1)
    per_anchor = -(log_p * positive).sum(1) / count.clamp(min=1)
    return per_anchor[count > 0].mean()


@pytest.mark.parametrize("impl", IMPLS)
def test_hand_worked_two_pairs(impl: str) -> None:
    # Two equal rows e1, two equal rows e2, tau = 1. For each anchor s = (1, 0, 0) with its twin
    # first: L = log(e + 1 + 1) - 1.
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
    got = supcon_loss(z, torch.tensor([7, 7, -3, -3]), temperature=1.0, impl=impl)
    assert got.item() == pytest.approx(math.log(math.e + 2) - 1, rel=1e-14)


@pytest.mark.parametrize("impl", IMPLS)
def test_hand_worked_antipodal_views(impl: str) -> None:
    # Sample 0 has views e1, e1; sample 1 has views e1, -e1; tau = 1/2.
    # Views of 0: s = 2 (twin), 2, -2: L = log(2e^2 + e^-2) - 2.
    # View e1 of 1: twin -2, others 2, 2: L = log(2e^2 + e^-2) + 2. View -e1: all -2: L = log 3.
    z = torch.tensor([[[1.0], [1]], [[1], [-1]]], dtype=torch.float64)
    got = supcon_loss(z, temperature=0.5, reduction="none", impl=impl)
    lse = math.log(2 * math.exp(2) + math.exp(-2))
    expected = torch.tensor([[lse - 2, lse - 2], [lse + 2, math.log(3)]], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
@given(
    n=st.integers(2, 12),
    d=st.integers(1, 5),
    classes=st.integers(1, 6),
    temperature=st.sampled_from([0.01, 0.07, 0.5, 1.0, 50.0]),
    ignored=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_labels_agree_with_scalar_loop(
    impl: str, n: int, d: int, classes: int, temperature: float, ignored: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=g)
    if ignored:
        labels[torch.rand(n, generator=g) < 0.3] = -100
    got = supcon_loss(features, labels, temperature=temperature, reduction="none", impl=impl)
    expected = scalar_loop(features, same_class(labels), temperature, (labels != -100).tolist())
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11 / temperature)


@pytest.mark.parametrize("impl", IMPLS)
@given(b=st.integers(1, 5), views=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_weighted_asymmetric_mask_agrees_with_scalar_loop(
    impl: str, b: int, views: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(b, views, 3, generator=g, dtype=torch.float64)
    mask = torch.rand(b, b, generator=g, dtype=torch.float64)
    mask = mask * (torch.rand(b, b, generator=g) < 0.6)
    got = supcon_loss(features, mask=mask, temperature=0.3, reduction="none", impl=impl)
    sample = torch.arange(b).repeat_interleave(views)
    expected = scalar_loop(features.flatten(0, 1), mask[sample][:, sample], 0.3)
    torch.testing.assert_close(got.flatten(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("impl", IMPLS)
def test_views_without_labels_are_each_others_positives(impl: str) -> None:
    features = torch.randn(5, 3, 4, dtype=torch.float64)
    by_views = supcon_loss(features, impl=impl)
    by_labels = supcon_loss(features, torch.tensor([4, 9, 2, 1, 0]), impl=impl)
    by_mask = supcon_loss(features, mask=torch.eye(5), impl=impl)
    torch.testing.assert_close(by_views, by_labels, rtol=1e-13, atol=0)
    torch.testing.assert_close(by_views, by_mask, rtol=1e-13, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_contrast_mode_one_averages_first_views(impl: str) -> None:
    features, labels = torch.randn(6, 2, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    every = supcon_loss(features, labels, reduction="none", impl=impl)
    first = supcon_loss(features, labels, contrast_mode="one", impl=impl)
    torch.testing.assert_close(first, every[:, 0].mean())


# 1,300 rows is more than one tile and no multiple of the tile size.
@pytest.mark.parametrize("n", [2, 63, 512, 1025, 1300])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("impl", IMPLS)
def test_value_and_gradient_stay_within_the_fp64_budget(
    impl: str, temperature: float, n: int
) -> None:
    g = torch.Generator().manual_seed(n)
    features = torch.randn(n, 24, generator=g)
    labels = torch.randint(7 if n > 2 else 1, (n,), generator=g)

    def value_and_gradient(loss, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        return value.detach(), gradient

    def ours(x: Tensor) -> Tensor:
        return supcon_loss(x, labels, temperature=temperature, impl=impl)

    def eager(x: Tensor) -> Tensor:
        return dense_eager(x, labels, temperature)

    truth = value_and_gradient(eager, features.double())
    for got, true, honest in zip(
        value_and_gradient(ours, features), truth, value_and_gradient(eager, features), strict=True
    ):
        # Gradients are differences of terms of size 1 / (τ n).
        assert_within_budget(got, true, honest, terms=1 / (temperature * n))


@pytest.mark.parametrize("temperature", [0.02, 0.2])
def test_tiles_agree_with_reference_when_rows_are_ignored(temperature: float) -> None:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1200, 8, generator=g, dtype=torch.float64)
    labels = torch.randint(5, (1200,), generator=g)
    labels[::3] = -100
    results = []
    for impl in IMPLS:
        features = base.clone().requires_grad_()
        tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        value = supcon_loss(features, labels, temperature=tau, impl=impl)
        results.append((value, *torch.autograd.grad(value, (features, tau))))
    for reference, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, reference, rtol=1e-10, atol=1e-14)
    assert not results[1][1][::3].any(), "an ignored row has a gradient"
