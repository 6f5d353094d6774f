"""Budgets reject what is worse than honest, for values and for gradients; saved bytes are counted."""

import pytest
import torch

from unmuddle.testing import assert_gradient_within_budget, assert_within_budget, saved_bytes

TRUTH = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.double)
HONEST = TRUTH.float()


def test_an_honest_result_is_within_its_budget() -> None:
    assert_within_budget(HONEST, TRUTH, HONEST)
    assert_gradient_within_budget(HONEST, TRUTH, HONEST)


def test_a_worse_result_is_told_with_both_numbers() -> None:
    worse = HONEST.clone()
    worse[7] += 1e-4
    with pytest.raises(AssertionError, match=r"error 0.0001, allowed .*; worst at 7: got -?\d"):
        assert_within_budget(worse, TRUTH, HONEST)


@pytest.mark.parametrize(
    ("figure", "gradient", "honest"),
    [
        ("relative error", HONEST * (1 + 1e-4), HONEST),
        # As far off as the honest one, but all in the direction, or all to one side.
        ("error of direction", HONEST.roll(1), HONEST * (1 + float((TRUTH.roll(1) - TRUTH).norm() / TRUTH.norm()))),
        ("bias", HONEST + 1e-3, HONEST + 1e-3 * HONEST.roll(1).sign()),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_gradient_is_named(figure: str, gradient, honest) -> None:
    with pytest.raises(AssertionError, match=f"gradient: {figure}"):
        assert_gradient_within_budget(gradient, TRUTH, honest)


@pytest.mark.parametrize("check", [assert_within_budget, assert_gradient_within_budget])
def test_shapes_and_infinities_have_to_agree(check) -> None:
    with pytest.raises(AssertionError, match=r"shape \(199,\), expected \(200,\)"):
        check(HONEST[1:], TRUTH, HONEST)
    broken = HONEST.clone()
    broken[3] = torch.nan
    with pytest.raises(AssertionError, match="not finite where the truth is"):
        check(broken, TRUTH, HONEST)


@pytest.mark.parametrize("check", [assert_within_budget, assert_gradient_within_budget])
def test_equal_infinities_are_right_and_others_wrong(check) -> None:
    truth, honest = TRUTH.clone(), HONEST.clone()
    truth[3:6] = honest[3:6] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    check(honest, truth, honest)
    wrong = honest.clone()
    wrong[3] = -torch.inf
    with pytest.raises(AssertionError, match="got: not the infinity of the truth"):
        check(wrong, truth, honest)


@pytest.mark.parametrize("check", [assert_within_budget, assert_gradient_within_budget])
def test_an_honest_result_that_is_none_excuses_nothing(check) -> None:
    broken = HONEST.clone()
    broken[3] = torch.inf
    with pytest.raises(AssertionError, match="honest: not finite where the truth is"):
        check(HONEST, TRUTH, broken)
    with pytest.raises(AssertionError, match=r"honest: shape \(1,\), expected \(200,\)"):
        check(HONEST, TRUTH, HONEST[:1])
    with pytest.raises(
        TypeError, match="got: expected a tensor of floating point numbers, got float"
    ):
        check(1.0, TRUTH, HONEST)
    with pytest.raises(TypeError, match="truth: expected a tensor of .* got torch.int64"):
        check(HONEST, TRUTH.long(), HONEST)


def test_impossible_budgets_are_refused() -> None:
    for slack, terms in ((0.0, 0.0), (4.0, float("nan")), (4.0, float("inf"))):
        with pytest.raises(ValueError, match="slack, terms: expected above 0, and finite"):
            assert_within_budget(HONEST, TRUTH, HONEST, slack=slack, terms=terms)


def test_zero_gradients_are_compared() -> None:
    zero = torch.zeros(5)
    assert_gradient_within_budget(zero, zero.double(), zero)
    with pytest.raises(AssertionError, match="relative error"):
        assert_gradient_within_budget(zero + 1, zero.double(), zero)


@pytest.mark.parametrize("check", [assert_within_budget, assert_gradient_within_budget])
def test_of_nothing_only_the_shapes_are_compared(check) -> None:
    nothing = torch.zeros(0, 3)
    check(nothing, nothing.double(), nothing)
    with pytest.raises(AssertionError, match=r"shape \(0, 3\), expected \(0,\)"):
        check(nothing, torch.zeros(0), nothing)


def test_saved_bytes_are_those_of_the_backward() -> None:
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda x: x.exp().sum(), x) == 400  # the result of exp
    assert saved_bytes(lambda x: x.square().sum(), x) == 0  # its argument, which is there anyway
    assert saved_bytes(lambda x: (x[:, None] * x).exp().sum(), x) == 40_000
    assert saved_bytes(lambda x: x.detach().exp().sum(), x) == 0
    y = x * 2
    assert saved_bytes(lambda a: (a.exp() + a.exp().mean()).sum(), y) == 800


class Keeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.repeat(3))
        return x.sum()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * torch.ones(100)


def test_what_a_function_of_ones_own_saves_counts() -> None:
    assert saved_bytes(Keeps.apply, torch.randn(100, requires_grad=True)) == 1200
