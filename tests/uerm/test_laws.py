"""What every policy and estimator obeys: neither names of classes nor order of samples matter."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from torch import Tensor

from unmuddle.testing import NoisyLabels, strategies
from unmuddle.uerm import Distribution, bayes, ema_margin, fit_noise, gather_evidence
from unmuddle.uerm.policy import PolicyName, choose_policy
from unmuddle.uerm.uncertainty import EstimatorName, choose_estimator

POLICIES = get_args(PolicyName)
ESTIMATORS = get_args(EstimatorName)


def evidence(problem: NoisyLabels, names: Tensor | None = None, order: Tensor | None = None):
    """What is known, with the classes named otherwise and the samples in another order."""
    names = torch.arange(problem.classes) if names is None else names
    order = torch.arange(problem.n) if order is None else order
    p = torch.empty_like(problem.probabilities)
    p[:, names] = problem.probabilities
    importance = torch.rand(problem.n, generator=torch.Generator().manual_seed(problem.seed))
    labels = names[problem.labels]
    known = gather_evidence(
        Distribution(p[order]),
        labels[order],
        problem.classes,
        importance=importance[order],
    )
    return known._replace(uncertainty=(1 - importance)[order])


def another_order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def close_to_its_threshold(proposals) -> Tensor:
    """Where rounding may decide."""
    return (proposals.margin - torch.as_tensor(proposals.threshold)).abs() < 1e-3


@pytest.mark.parametrize("name", POLICIES)
@given(problem=strategies.noisy_labels())
def test_relabeling_depends_on_neither_names_nor_order(name, problem) -> None:
    policy, _ = choose_policy(name)
    names, order = another_order(problem.classes, problem.seed), another_order(problem.n, 1)
    proposals = policy(evidence(problem))
    again = policy(evidence(problem, names=names, order=order))
    clear = ~close_to_its_threshold(proposals)[order]
    assert torch.equal(again.labels[clear], names[proposals.labels][order][clear])


@pytest.mark.parametrize("name", ESTIMATORS)
@given(problem=strategies.noisy_labels())
def test_uncertainty_is_a_share_whatever_the_names_and_the_order(name, problem) -> None:
    estimator = choose_estimator(name)
    found = estimator(evidence(problem))
    assert ((found >= 0) & (found <= 1)).all()
    names, order = another_order(problem.classes, 1), another_order(problem.n, 2)
    again = estimator(evidence(problem, names=names, order=order))
    torch.testing.assert_close(again, found[order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", [bayes, ema_margin], ids=["bayes", "ema_margin"])
@given(problem=strategies.noisy_labels())
def test_what_is_certain_and_agrees_is_left_alone(policy, problem) -> None:
    p = torch.nn.functional.one_hot(problem.labels, problem.classes).float()
    known = gather_evidence(Distribution(p), problem.labels, problem.classes)
    assert torch.equal(policy(known).labels, known.original)
    assert fit_noise(known.predictions, known.original, problem.classes).rate < 0.2
