"""What a finding says, and when two numbers are near enough."""

import math

import pytest
import torch

import mutants
from unmuddle.testing import LAWS, Batch, Finding, Loss, check_loss, measured, try_law

BATCH = Batch(n=4, dim=3, classes=2)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_equal_means_within_the_budget_and_below_has_one_side() -> None:
    assert Finding(numbers(1.0, 2.0), "==", numbers(1.1, 2.0), 0.2).holds
    assert not Finding(numbers(1.0, 2.0), "==", numbers(1.3, 2.0), 0.2).holds
    assert Finding(numbers(-9.0), "<=", numbers(1.0)).holds
    assert not Finding(numbers(1.1), "<=", numbers(1.0)).holds
    assert Finding(numbers(math.inf), "==", numbers(math.inf)).holds
    assert not Finding(numbers(math.nan), "==", numbers(1.0)).holds


def test_the_worst_numbers_are_shown() -> None:
    assert Finding(numbers(1.0, 2.0), "==", numbers(1.1, 5.0)).worst == (2.0, 5.0)
    nothing = torch.zeros(0)
    assert all(map(math.isnan, Finding(nothing, "==", nothing).worst))


def test_results_of_another_shape_break_a_law() -> None:
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(3,\)"):
        _ = Finding(numbers(1.0, 2.0), "==", numbers(1.0, 2.0, 3.0)).holds


def test_the_budget_of_a_loss_without_fp32_is_rounding_alone() -> None:
    def only_double(features, labels):
        if features.dtype != torch.float64:
            raise TypeError("fp64 only")
        return mutants.supcon(features, labels)

    value, budget = measured(loss := Loss(only_double), loss.value, BATCH.features, BATCH.labels)
    assert 0 < budget <= 256 * loss.eps * (1 + float(value))


def test_a_measurement_is_kept_for_the_same_numbers_only() -> None:
    calls = []

    def counted(features, labels, scale=1.0):
        calls.append(features.dtype)
        return scale * mutants.supcon(features, labels)

    loss = Loss(counted)
    x, labels = BATCH.features, BATCH.labels
    _ = loss.eps
    calls.clear()
    once = measured(loss, loss.value, x, labels)
    assert measured(loss.copy(), loss.value, x, labels) is once
    assert calls == [torch.float64, torch.float32]
    for other in (
        measured(loss, loss.gradient, x, labels),
        measured(loss, loss.value, 2 * x, labels),
        measured(loss, loss.value, x, 1 - labels),
        measured(loss, loss.value, x, labels, scale=2.0),
        measured(loss, loss.value, x.clone().requires_grad_(), labels),
        measured(Loss(counted), loss.value, x, labels),
    ):
        assert other is not once
    assert len(calls) == 2 + 6 * 2 + 3  # a new loss is asked three times what format it works in


def test_a_passed_law_has_no_counter_example() -> None:
    passed = try_law(LAWS["permutation"], Loss(mutants.supcon), BATCH)
    assert (passed.status, passed.code, passed.numbers) == ("passed", "", "")


def test_a_built_in_function_can_be_a_loss() -> None:
    (result,) = check_loss(torch.take, laws=[LAWS["deterministic"]]).results
    assert result.status == "passed"
