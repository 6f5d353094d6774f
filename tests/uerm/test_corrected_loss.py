"""The noise-corrected cross-entropy, and the transition matrix that it relies on."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from unmuddle import UERM
from unmuddle.uerm import Distribution, UERMOutput
from unmuddle.uerm.noise import transition_matrix


def output(labels: Tensor, transition: Tensor, uncertainty: float = 0.1) -> UERMOutput:
    """Labels that are as given, with one uncertainty."""
    out = UERM(labels, len(transition))(
        torch.zeros(len(labels), 1), torch.zeros(len(labels), len(transition)),
        torch.arange(len(labels)),
    )  # fmt: skip
    return out._replace(uncertainty=torch.full((len(labels),), uncertainty), transition=transition)


def noise(rate: float, classes: int) -> Tensor:
    right = torch.eye(classes, dtype=torch.float64)
    return (1 - rate) * right + rate * (1 - right) / (classes - 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_noise_or_uncertainty_it_is_the_cross_entropy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    labels, logits = torch.arange(12) % 4, (9 * torch.randn(12, 4)).to(dtype)
    wide = logits if dtype == torch.float64 else logits.float()
    expected = cross_entropy(wide, labels, reduction="none")
    exact = output(labels, torch.eye(4))
    certain = output(labels, noise(0.3, 4).float(), uncertainty=0)
    for out in (exact, certain):
        torch.testing.assert_close(out.corrected_cross_entropy(logits), expected)


def test_its_gradient_is_the_prediction_minus_the_posterior() -> None:
    torch.manual_seed(0)
    transition = torch.rand(4, 4, dtype=torch.float64)
    transition /= transition.sum(1, keepdim=True)
    labels = torch.arange(12) % 4
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    losses = output(labels, transition).corrected_cross_entropy(logits)
    p = logits.detach().softmax(1)
    joint = p * transition[:, labels].T
    torch.testing.assert_close(losses.detach(), -joint.sum(1).log())
    (got,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(got, p - joint / joint.sum(1, keepdim=True))
    assert torch.autograd.gradcheck(output(labels, transition).corrected_cross_entropy, logits)


def test_it_is_least_at_the_distribution_of_the_true_class() -> None:
    torch.manual_seed(0)
    transition = torch.rand(4, 4, dtype=torch.float64) + 2 * torch.eye(4)
    transition /= transition.sum(1, keepdim=True)
    truth = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    of_label = truth @ transition
    out = output(torch.arange(4), transition)

    def expected_loss(p: Tensor) -> Tensor:
        return (of_label * out.corrected_cross_entropy(p.log().expand(4, 4))).sum()

    least = expected_loss(truth)
    for _ in range(50):
        other = torch.softmax(truth.log() + 0.1 * torch.randn(4), 0)
        assert expected_loss(other) > least
    assert not torch.allclose(of_label, truth, atol=0.05), "the labels alone say something else"


@pytest.mark.parametrize("k", [None, 4, 3])
def test_the_transition_matrix_is_that_of_the_noise(k: int | None) -> None:
    torch.manual_seed(0)
    transition = torch.tensor(
        [[0.8, 0.1, 0.1, 0.0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    truth = torch.arange(40_000) % 4
    labels = transition[truth].multinomial(1)[:, 0]
    known = Distribution(one_hot(truth, 4).float())
    if k is not None:  # the largest entries, in any order
        known = Distribution(*(v[:, :k] for v in known.probabilities.sort(descending=True)))
    nobody = torch.zeros(40_000, dtype=torch.bool)
    found = transition_matrix(known, labels, 4, verified=nobody, truth=labels)
    torch.testing.assert_close(found, transition, atol=0.02, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    assert (found > 0).all(), "no label is impossible"


def test_without_samples_one_label_in_ten_is_wrong() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    found = transition_matrix(
        Distribution(torch.zeros(0, 4)), nothing, 4, verified=nothing.bool(), truth=nothing
    )
    torch.testing.assert_close(found, noise(0.1, 4).float())


@pytest.mark.parametrize("k", [None, 2])
def test_a_verified_label_counts_for_its_true_class(k: int | None) -> None:
    truth, labels = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]).repeat(1, 10)
    wrong = Distribution(one_hot(1 - truth, 2).float())  # the network is always wrong
    if k is not None:
        wrong = Distribution(*wrong.probabilities.sort(descending=True))
    everybody = torch.ones(40, dtype=torch.bool)
    found = transition_matrix(wrong, labels, 2, verified=everybody, truth=truth)
    torch.testing.assert_close(found, torch.tensor([[19.0, 11.0], [1.0, 29.0]]) / 30)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}])
def test_uerm_finds_the_noise_and_corrects_what_it_may(options: dict) -> None:
    torch.manual_seed(0)
    truth = torch.arange(3000) % 3
    given = torch.where(torch.rand(3000) < 0.3, (truth + 1) % 3, truth)  # taken for the next class
    logits = 6.0 * one_hot(truth, 3) + torch.randn(3000, 3)
    uerm = UERM(given, 3, warmup_epochs=2, **options)
    ids = torch.arange(3000)

    def losses() -> Tensor:
        return uerm(logits, logits, ids).corrected_cross_entropy(logits)

    torch.testing.assert_close(losses(), cross_entropy(logits, given, reduction="none"))
    uerm.end_epoch()
    assert torch.equal(uerm.transition, torch.eye(3)), "not before the end of the warm-up"
    losses()
    changed = uerm.end_epoch()
    expected = 0.7 * torch.eye(3) + 0.3 * torch.eye(3).roll(1, 1)
    torch.testing.assert_close(uerm.transition, expected, atol=0.03, rtol=0)
    relabeled = torch.tensor([event.sample for event in changed])
    assert len(relabeled) > 600
    plain = cross_entropy(logits, given, reduction="none")
    assert (losses() < 2).all(), "no loss is far above -log 0.3"
    of_given = (logits.softmax(1) * uerm.transition.T[given]).sum(1)
    torch.testing.assert_close(losses(), -of_given.log(), msg="new labels are not trained on")
    assert plain[relabeled].mean() > 4

    decided = relabeled[:5]  # the person insists on the given label
    before = uerm.transition
    uerm.ledger.decide(decided, given[decided])
    uerm.end_epoch()
    torch.testing.assert_close(losses()[decided], plain[decided])
    assert not torch.equal(uerm.transition, before)
    assert (losses()[relabeled[5:]] < 2).all()


def test_an_earlier_output_keeps_its_transition_matrix() -> None:
    uerm = UERM(torch.tensor([0, 0, 1]), 2, warmup_epochs=0)
    logits = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
    out = uerm(logits, logits, torch.arange(3))
    uerm.end_epoch()
    assert torch.equal(out.transition, torch.eye(2))
    assert not torch.equal(uerm.transition, torch.eye(2))


def test_logits_of_another_shape_or_kind_are_refused() -> None:
    out = output(torch.arange(3), torch.eye(3))
    for logits, got in ((torch.arange(9).view(3, 3), "torch.int64"), ([[0.0]], "list")):
        with pytest.raises(ValueError, match=f"logits: expected a floating-point .*, got {got}"):
            out.corrected_cross_entropy(logits)  # pyright: ignore
    with pytest.raises(
        ValueError, match=r"logits: expected shape \(N, K\) = \(3, 3\), got \(3, 2\)"
    ):
        out.corrected_cross_entropy(torch.zeros(3, 2))
