"""What a finding says, and when two numbers are near enough."""

import math
from functools import partial

import pytest
import torch

from tests.helpers import mutants, thinned
from unmuddle.testing import (
    LAWS,
    Batch,
    Finding,
    Loss,
    check_loss,
    law,
    measured,
    parametrize_with_laws,
    try_law,
)

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


def test_less_means_by_more_than_the_budget() -> None:
    assert Finding(numbers(1.0), "<", numbers(1.3), 0.2).holds
    assert not Finding(numbers(1.0), "<", numbers(1.1), 0.2).holds
    assert not Finding(numbers(1.0), "<", numbers(1.0)).holds
    assert Finding(numbers(1.0), "<", numbers(math.inf), 0.2).holds
    assert not Finding(numbers(math.inf), "<", numbers(math.inf)).holds
    assert not Finding(numbers(math.nan), "<", numbers(1.0)).holds
    result = try_law(LAWS["informative_scores"], Loss(flat, ["logits"]), BATCH)
    assert result.numbers == "found 0, expected less than 0"


def flat(scores, labels):
    return 0 * scores.sum()


def hinge(scores, labels, margin=1.0, power=1):
    above = margin + scores - scores.gather(1, labels[:, None])
    return above.relu().pow(power).sum(1) - margin**power


@pytest.mark.parametrize("options", thinned([{}, {"margin": 2.0}, {"power": 2}], 3))
def test_a_hinge_loss_breaks_no_law(options: dict) -> None:
    report = check_loss(partial(hinge, **options), kinds=["logits"])
    assert report.of("failed") == ()
    assert LAWS["informative_scores"] in [result.law for result in report.of("passed")]
    (broken,) = check_loss(torch.nn.MultiMarginLoss(), kinds=["logits"]).of("failed")
    assert broken.law.name == "nan_is_not_hidden", "torch's own is 0 for NaN"


def test_numbers_of_python_are_compared_as_doubles() -> None:
    assert Finding(0.1, "==", numbers(0.1)).holds
    assert not Finding(0.1 + 1e-15, "==", 0.1).holds
    assert Finding(1, "<=", 2).worst == (1, 2)


def test_a_loss_that_is_nan_everywhere_passes_no_law() -> None:
    @law()
    def shifted(loss, batch):
        """Moving all rows changes nothing."""
        x = batch.features
        return Finding(loss.value(x + 1, batch.labels), "==", loss.value(x, batch.labels), 1e-9)

    def nowhere(features, labels):
        return features.sum() * math.nan

    def in_pairs(features, labels):
        return features.std() * (1 if len(features) > 2 else math.nan)

    _, result = check_loss(nowhere, laws=["inputs_untouched", shifted]).results
    assert (result.status, result.numbers) == ("failed", "NaN on both sides")
    assert "# loss: what was checked" in result.code
    test = parametrize_with_laws(nowhere, laws=[shifted]).args[1][0].values[0]
    with pytest.raises(AssertionError, match="NaN on both sides"):
        test()
    (result,) = check_loss(in_pairs, laws=[shifted]).results
    assert result.status == "passed"


def test_a_misspelt_kind_and_a_negative_budget_are_told() -> None:
    with pytest.warns(UserWarning, match="no kind is called 'pairwize'; did you mean 'pairwise'"):
        law("pairwize")

    @law("contrastive", "temperature")
    def below(loss, batch):
        """Knows the old way to ask for less."""
        return Finding(1.0, "<=", 1.0, -0.5)

    with pytest.raises(TypeError, match="below: budget: expected at least 0, got -0.5"):
        below(Loss(mutants.supcon), BATCH)


def test_a_law_that_fails_by_itself_is_not_the_losses_failure() -> None:
    @law()
    def mean_is_the_same(loss, batch):
        """A law in Python numbers."""
        value = float(loss.value(batch.features, batch.labels))
        return Finding(value, "==", value)

    @law()
    def misspelt(loss, batch):
        """A law with a bug."""
        return Finding(loss.value(batch.features, batch.labels), "==", expectation)  # noqa: F821

    @law()
    def text(loss, batch):
        """A law that compares text."""
        return Finding("1", "==", loss.value(batch.features, batch.labels))

    @law()
    def indirect(loss, batch):
        """A law whose helper has a bug."""

        def helper():
            return batch.nonsense

        return Finding(loss.value(batch.features, batch.labels), "==", helper())

    def broken(features, labels):
        raise KeyError("scale")

    assert try_law(mean_is_the_same, Loss(mutants.supcon), BATCH).status == "passed"
    assert try_law(mean_is_the_same, Loss(broken), BATCH).error == "KeyError: 'scale'"
    with pytest.raises(TypeError, match="misspelt: NameError: name 'expectation' is not defined"):
        try_law(misspelt, Loss(mutants.supcon), BATCH)
    with pytest.raises(
        TypeError, match="indirect: AttributeError: 'Batch' object has no attribute"
    ):
        try_law(indirect, Loss(mutants.supcon), BATCH)
    with pytest.raises(TypeError, match="text: found: expected a tensor or a number, got str"):
        try_law(text, Loss(mutants.supcon), BATCH)


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
