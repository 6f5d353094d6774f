"""The loss against two oracles that share no code with it: a scalar loop and hand-worked values."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import thinned
from tests.helpers.problems import KINDS, draw, scalar_loop
from unmuddle import supcon_loss
from unmuddle.supcon.loss import HAS_TRITON
from unmuddle.testing import assert_within_budget

IMPLS = ["reference", "dense", "tiled"]
MODES = list(itertools.product(["out", "in"], ["all", "negatives"]))


def dense_eager(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The usual dense computation in the features' dtype, mean over anchors with a positive."""
    z = torch.nn.functional.normalize(features)
    s = z @ z.T / temperature
    s = s - s.amax(1, keepdim=True).detach()
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("impl", IMPLS)
@given(
    n=st.integers(2, 10),
    dim=st.integers(1, 5),
    modes=st.sampled_from(MODES),
    temperature=st.sampled_from([0.01, 0.07, 0.5, 1.0, 50.0]),
    seed=st.integers(0, 2**32),
    weighted=st.booleans(),
)
def test_every_kind_of_supervision_agrees_with_the_scalar_loop(
    impl: str,
    kind: str,
    n: int,
    dim: int,
    modes: tuple[str, str],
    temperature: float,
    seed: int,
    weighted: bool,
) -> None:
    drawn = draw(kind, n, dim, seed, weighted=weighted)
    got = supcon_loss(
        drawn.features, **drawn.arguments, temperature=temperature, positives=modes[0],
        denominator=modes[1], reduction="none", impl=impl,
    )  # fmt: skip
    expected = scalar_loop(drawn, temperature, *modes)
    torch.testing.assert_close(got.flatten(), expected, rtol=1e-11, atol=1e-11 / temperature)


# More than the one tile, several tiles, no multiple of the tile size.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("temperature", [0.01, 0.3])
@pytest.mark.parametrize(
    ("n", "weighted"), thinned([(9, True), (9, False), (700, False), (700, True)], 2)
)
def test_every_backend_agrees_with_the_reference_in_value_and_every_gradient(
    kind: str, modes: tuple[str, str], temperature: float, n: int, weighted: bool
) -> None:
    drawn = draw(kind, n, 4, seed=n, weighted=weighted)
    torch.manual_seed(0)  # weights by which no gradient happens to cancel
    weight = torch.rand(len(drawn.features), dtype=torch.float64)
    results = []
    for impl in IMPLS:
        leaves = [drawn.features.clone(), torch.tensor(temperature, dtype=torch.float64)]
        arguments = dict(drawn.arguments)
        if "keys" in arguments:
            leaves.append(arguments["keys"].clone())
            arguments["keys"] = leaves[2]
        for leaf in leaves:
            leaf.requires_grad_()
        value = supcon_loss(
            leaves[0], **arguments, temperature=leaves[1], positives=modes[0],
            denominator=modes[1], weight=weight, impl=impl,
        )  # fmt: skip
        results.append((value, *torch.autograd.grad(value, leaves)))
    for reference, *fast in zip(*results, strict=True):
        for mine in fast:
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [9, 700])
def test_keys_without_gradient_take_part_in_the_temperature_s(n: int) -> None:
    drawn = draw("keys", n, 4, seed=n)
    gradients = []
    for impl in IMPLS:
        tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss = supcon_loss(drawn.features, **drawn.arguments, temperature=tau, impl=impl)
        gradients += torch.autograd.grad(loss, tau)
    for mine in gradients[1:]:
        torch.testing.assert_close(mine, gradients[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [512, 513])
@pytest.mark.parametrize("share", [1e-4, 1e-7, 1e-10])
def test_a_small_share_of_a_class_is_not_lost_beside_a_whole_one(share: float, n: int) -> None:
    features = torch.randn(n, 16)
    memberships = torch.tensor([share, 1.0]).repeat(n, 1)
    memberships[0] = torch.tensor([1.0, 0.0])  # whose positives are all that small
    mine, truth = (
        supcon_loss(features, memberships, reduction="none", impl=impl)[0]
        for impl in ("auto", "reference")
    )
    torch.testing.assert_close(mine, truth, rtol=2e-5, atol=0)


def test_rows_that_weigh_most_with_themselves_keep_their_precision() -> None:
    # Weights of 1e-6 with all others, of 1 with themselves: what is taken away is nearly all.
    n = 600
    features, labels = torch.randn(n, 16), torch.eye(n, n + 1)
    labels[:, n] = 1e-3
    each = [
        supcon_loss(features, labels, reduction="none", impl=impl)
        for impl in ("reference", "tiled")
    ]
    torch.testing.assert_close(each[1], each[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [7, 800])
@pytest.mark.parametrize("modes", MODES)
def test_one_hot_memberships_are_the_integer_case(impl: str, n: int, modes: tuple) -> None:
    features, labels = torch.randn(n, 3, dtype=torch.float64), torch.randint(4, (n,))
    one_hot = torch.nn.functional.one_hot(labels, 4)
    options = {"positives": modes[0], "denominator": modes[1], "impl": impl}
    by_class = supcon_loss(features, labels, **options)
    for memberships in (one_hot, one_hot.bool(), one_hot.float()):
        by_membership = supcon_loss(features, memberships, **options)
        torch.testing.assert_close(by_membership, by_class, rtol=1e-14, atol=0)


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
    each = supcon_loss(features, labels, contrast_mode="one", reduction="none", impl=impl)
    assert torch.equal(each, every[:, 0])


# 1,300 rows is more than one tile and no multiple of the tile size.
@pytest.mark.parametrize("n", [2, 63, 512, 1025, 1300])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("impl", IMPLS)
def test_value_stays_within_the_fp64_budget(impl: str, temperature: float, n: int) -> None:
    features = torch.randn(n, 24, generator=torch.Generator().manual_seed(n))
    labels = torch.arange(n) % 7 if n > 2 else torch.zeros(n, dtype=torch.int64)
    got = supcon_loss(features, labels, temperature=temperature, impl=impl)
    truth = dense_eager(features.double(), labels, temperature)
    honest = dense_eager(features, labels, temperature)
    assert_within_budget(got, truth, honest, terms=1 / temperature)


def gradient(loss, features: Tensor) -> Tensor:
    x = features.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0].double()


@pytest.mark.parametrize(
    ("n", "dim", "temperature"),
    thinned(
        itertools.product([2, 3, 63, 64, 257, 1000], [1, 3, 63, 128, 700], [0.01, 0.07, 0.5, 1.0]),
        7,
    ),
)
def test_gradient_is_no_further_from_fp64_than_the_eager_one(
    temperature: float, n: int, dim: int
) -> None:
    g = torch.Generator().manual_seed(1000 * n + dim)
    features = torch.randn(n, dim, generator=g)
    labels = torch.randint(2 if n > 3 else 1, (n,), generator=g)

    def error(loss) -> float:
        return float((gradient(loss, features) - truth).abs().max())

    def eager(x: Tensor) -> Tensor:
        return dense_eager(x, labels, temperature)

    truth = gradient(eager, features.double())
    impls = [*IMPLS, "triton"] if n < 100 and dim < 700 and HAS_TRITON else [*IMPLS]
    if n == 2:  # attraction and repulsion cancel, with tiles up to a rounding
        impls.remove("tiled")
    for impl in impls:
        ours = partial(supcon_loss, labels=labels, temperature=temperature, impl=impl)
        assert error(ours) <= error(eager) + 1e-6, impl


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [50, 1200])
def test_the_same_input_gives_the_same_bits_and_a_permuted_batch_the_same_loss(
    impl: str, n: int
) -> None:
    features, labels = torch.randn(n, 16), torch.randint(5, (n,))

    def run(order: Tensor) -> tuple[Tensor, Tensor]:
        x = features.clone().requires_grad_()
        value = supcon_loss(x[order], labels[order], impl=impl)
        return value.detach(), torch.autograd.grad(value, x)[0]

    straight, again, permuted = run(torch.arange(n)), run(torch.arange(n)), run(torch.randperm(n))
    truth = gradient(lambda x: supcon_loss(x, labels, impl="reference"), features.double())
    assert torch.equal(straight[0], again[0])
    assert torch.equal(straight[1], again[1])
    torch.testing.assert_close(permuted[0], straight[0], rtol=1e-6, atol=0)
    assert_within_budget(permuted[1], truth, straight[1], terms=1 / (0.07 * n))


@pytest.mark.parametrize("impl", IMPLS)
def test_weight_of_an_anchor_is_its_share_of_the_mean(impl: str) -> None:
    features, labels = torch.randn(6, 2, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    weight = torch.tensor([1.0, 0, 3, 0.5, 0, 2])
    each = supcon_loss(features, labels, reduction="none", impl=impl)
    weighted = supcon_loss(features, labels, weight=weight, impl=impl)
    torch.testing.assert_close(weighted, (each.mean(1) * weight).sum() / weight.sum())
    nobody = supcon_loss(features, labels, weight=torch.zeros(6), impl=impl)
    assert nobody.item() == 0
