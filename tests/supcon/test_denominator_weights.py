"""Laws of the weights in the denominator, on every backend."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmuddle import supcon_loss
from unmuddle.supcon.loss import HAS_TRITON

IMPLS = ["reference", "dense", "tiled", *(["triton"] if HAS_TRITON else [])]
every_impl = pytest.mark.parametrize("impl", IMPLS)
every_impl_but_slow_kernels = pytest.mark.parametrize(
    "impl", [pytest.param(i, marks=pytest.mark.slow) if i == "triton" else i for i in IMPLS]
)
every_form = pytest.mark.parametrize(
    "form",
    [
        {},
        {"positives": "in"},
        {"denominator": "negatives"},
        {"positives": "in", "denominator": "negatives"},
    ],
)


def value_and_gradient(x: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = supcon_loss(leaf, labels, temperature=0.3, **options)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for mine, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-12)


def batch(n: int = 9) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 4, generator=g, dtype=torch.float64), torch.arange(n) % 3


@every_impl
def test_hand_worked_value(impl: str) -> None:
    # Two equal rows e1, two equal rows e2, tau = 1, weight 2 of the rows e2. An anchor e1 has its
    # twin at s = 1 and two rows at s = 0: L = log(e + 2 + 2) - 1. An anchor e2: log(2e + 1 + 1) - 1.
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
    weight = torch.tensor([1.0, 1, 2, 2])
    got = supcon_loss(
        z, torch.tensor([0, 0, 1, 1]), denominator_weight=weight, temperature=1.0,
        reduction="none", impl=impl,
    )  # fmt: skip
    first, second = math.log(math.e + 4) - 1, math.log(2 * math.e + 2) - 1
    expected = torch.tensor([first, first, second, second], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


@every_impl_but_slow_kernels
@every_form
@given(factor=st.floats(1e-6, 1e6))
def test_a_common_factor_adds_its_logarithm_and_leaves_the_gradient(
    impl: str, form: dict, factor: float
) -> None:
    x, labels = batch()
    value, gradient = value_and_gradient(x, labels, impl=impl, **form)
    weight = torch.full((len(x),), factor, dtype=torch.float64)
    got = value_and_gradient(x, labels, denominator_weight=weight, impl=impl, **form)
    assert_same(got, (value + math.log(factor), gradient))


@every_impl_but_slow_kernels
@every_form
@given(copies=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_weight_of_k_is_k_copies_of_a_negative(impl: str, form: dict, copies: list[int]) -> None:
    x, labels = batch()
    keys = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nobody = torch.full((4,), 7)
    weight = torch.tensor(copies, dtype=torch.float64)
    got = value_and_gradient(
        x, labels, keys=keys, key_labels=nobody, key_weight=weight, impl=impl, **form
    )
    repeats = torch.tensor(copies)
    repeated, of_nobody = keys.repeat_interleave(repeats, 0), nobody.repeat_interleave(repeats)
    expected = value_and_gradient(x, labels, keys=repeated, key_labels=of_nobody, impl=impl, **form)
    assert_same(got, expected)


@every_impl
@every_form
def test_a_sample_of_weight_zero_remains_a_positive_and_an_anchor(impl: str, form: dict) -> None:
    x, labels = batch()
    weight = torch.ones(len(x))
    weight[0] = 0
    x.requires_grad_()
    each = supcon_loss(
        x, labels, denominator_weight=weight, reduction="none", temperature=0.3, impl=impl, **form
    )
    plain = supcon_loss(x, labels, reduction="none", temperature=0.3, impl=impl, **form)
    # Anchor 0 is not a term of its own denominator, so its loss is as before.
    torch.testing.assert_close(each[0], plain[0])
    assert (each[labels == 1] < plain[labels == 1]).all()
    pulled = torch.autograd.grad(each[3], x)[0]
    assert pulled[0].any(), "row 3 is still drawn to row 0, of its class"


@pytest.mark.parametrize(
    ("impl", "n"), [*((impl, 9) for impl in IMPLS), ("dense", 600), ("tiled", 600)]
)
@pytest.mark.parametrize("exponent", [-37, 37])  # beyond, sums leave fp32
def test_extreme_weights_are_exact(impl: str, n: int, exponent: int) -> None:
    x, labels = batch(n)
    weight = 10.0 ** (exponent * (torch.arange(n) % 2)).double()
    truth = value_and_gradient(x, labels, denominator_weight=weight, impl="reference")
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        got = value_and_gradient(x.to(dtype), labels, denominator_weight=weight, impl=impl)
        for mine, true in zip(got, truth, strict=True):
            error = float((mine.double() - true).abs().max())
            assert error <= rtol * (float(true.abs().max()) + 1)


@every_impl
def test_weights_get_no_gradient(impl: str) -> None:
    x, labels = batch()
    weight = torch.ones(len(x), requires_grad=True)
    loss = supcon_loss(x.requires_grad_(), labels, denominator_weight=weight, impl=impl)
    loss.backward()
    assert x.grad.any()
    assert weight.grad is None


@every_impl
def test_weights_of_1_over_the_class_size_balance_the_denominator(impl: str) -> None:
    # A class of twice as many copies of the same rows counts as the class once.
    x, labels = batch(6)
    doubled = torch.cat([x, x[labels == 2]])
    all_labels = torch.cat([labels, labels[labels == 2]])
    losses = []
    for rows, classes in ((x, labels), (doubled, all_labels)):
        weight = 1 / classes.bincount()[classes]
        each = supcon_loss(
            rows, classes, denominator_weight=weight, reduction="none", impl=impl,
            denominator="negatives",
        )  # fmt: skip
        losses.append(each[:6][labels < 2])
    torch.testing.assert_close(losses[1], losses[0])


@every_impl
@every_form
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_nan_in_gives_nan_out(impl: str, form: dict, share: float) -> None:
    x, labels = batch(10)
    weight = torch.ones(10)
    weight[: round(10 * share)] = torch.nan
    assert supcon_loss(x, labels, denominator_weight=weight, impl=impl, **form).isnan()


@every_impl
def test_without_an_anchor_the_gradient_of_keys_is_zero(impl: str) -> None:
    keys = torch.randn(3, 4, requires_grad=True)
    loss = supcon_loss(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), keys=keys,
        key_labels=torch.arange(3), key_weight=torch.ones(3), impl=impl,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0
    assert keys.grad is None or not keys.grad.any()
