"""What verified labels teach: noise that the predictions have taken over, and nothing else."""

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from unmuddle import UERM
from unmuddle.uerm import Distribution, gather_evidence
from unmuddle.uerm.calibration import calibrate

K, N = 4, 3000


def taken_over(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions that agree with most wrong labels; two thirds of the labels 3 are wrong."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(K - 1, (N,), generator=g)
    truth[:200] = 3
    confused = torch.rand(N, generator=g) < torch.tensor([0.0, 0.02, 0.4, 0.0])[truth]
    given = torch.where(confused, 3, truth)
    logits = torch.randn(N, K, generator=g)
    logits[torch.arange(N), given] += 2
    logits[torch.arange(N), truth] += 1
    return logits.softmax(1), given, truth


def answers(wrong: Tensor, m: int, seed: int = 0) -> Tensor:
    """Half of them at random, half among the suspects."""
    g = torch.Generator().manual_seed(seed)
    verified = torch.zeros(N, dtype=torch.bool)
    verified[torch.randperm(N, generator=g)[: m // 2]] = True
    suspects = wrong.argsort(descending=True)[: 2 * m]
    verified[suspects[torch.randperm(len(suspects), generator=g)[: m // 2]]] = True
    return verified


@pytest.mark.parametrize("k", [K, 3])
def test_a_hundred_answers_find_noise_that_was_taken_over(k: int) -> None:
    p, given, truth = taken_over()
    top = p.topk(k)
    predictions = Distribution(p) if k == K else Distribution(top.values, top.indices.short())
    before = gather_evidence(predictions, given, K)
    verified = answers(before.uncertainty, 100)
    after = gather_evidence(predictions, given, K, current=torch.where(verified, truth, given),
                            verified=verified)  # fmt: skip
    unknown = ~verified
    is_wrong = (truth != given)[unknown]

    def precision(evidence) -> float:
        doubt = (1 - evidence.posterior.prob_of(given))[unknown]
        return float(average_precision_score(is_wrong, doubt))

    assert precision(after) > precision(before) + 0.3
    share = float(is_wrong.float().mean())
    off = [
        abs(share - float((1 - evidence.posterior.prob_of(given))[unknown].mean()))
        for evidence in (before, after)
    ]
    assert off[1] < 0.5 * off[0], "the expected share of wrong labels is nearer to the true one"
    torch.testing.assert_close(after.posterior.probabilities.sum(1), torch.ones(N))
    assert (after.posterior.probabilities >= 0).all()


@pytest.mark.parametrize("k", [K, 3])
def test_a_class_that_is_suggested_too_often_is_corrected(k: int) -> None:
    g = torch.Generator().manual_seed(0)
    given = torch.zeros(N, dtype=torch.int64)
    truth = torch.tensor([0, 1, 2]).repeat_interleave(N // 3)
    logits = torch.randn(N, K, generator=g)
    logits[torch.arange(N), truth] += 2
    logits[:, 3] += 2  # no sample is of this class
    top = logits.softmax(1).topk(k)
    posterior = Distribution(top.values, top.indices)
    verified = torch.zeros(N, dtype=torch.bool)
    verified[torch.randperm(N, generator=g)[:100]] = True
    found = calibrate(posterior, given, K, verified=verified, truth=truth)
    shares = [
        float((distribution.best()[1] == truth)[~verified].float().mean())
        for distribution in (posterior, found)
    ]
    assert shares[1] > shares[0] + 0.2
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(N))


def test_labels_of_one_class_are_trusted_and_those_of_another_are_not() -> None:
    given = torch.arange(N) % 3
    truth = torch.where(given == 2, 1, given)  # labels 2 are all wrong
    p = torch.tensor([0.3, 0.4, 0.3, 0.0]).repeat(N, 1)  # the predictions say nothing
    found = calibrate(Distribution(p), given, K, verified=torch.arange(N) < 60, truth=truth)
    right = found.prob_of(given)
    assert right[given == 0].min() > 0.9
    assert right[given == 1].min() > 0.9
    assert right[given == 2].max() < 0.1


def test_a_true_class_that_was_forgotten_still_speaks_against_the_label() -> None:
    n = 60
    posterior = Distribution(torch.tensor([[0.7, 0.3]]).repeat(n, 1), torch.tensor([[0, 1]] * n))
    given, truth = torch.zeros(n, dtype=torch.int64), torch.full((n,), 2)
    truth[0] = 0
    verified = torch.arange(n) < 30
    found = calibrate(posterior, given, K, verified=verified, truth=truth)
    assert (found.prob_of(given) < 0.2).all()


def test_without_answers_of_both_kinds_nothing_changes() -> None:
    p, given, truth = taken_over()
    posterior = Distribution(p)
    wrong = truth != given
    for verified in (torch.zeros(N, dtype=torch.bool), wrong, ~wrong):
        assert calibrate(posterior, given, K, verified=verified, truth=truth) is posterior
    one_each = torch.zeros(N, dtype=torch.bool)
    one_each[wrong.nonzero()[0]] = one_each[(~wrong).nonzero()[0]] = True
    assert calibrate(posterior, given, K, verified=one_each, truth=truth) is not posterior


def test_neither_names_of_classes_nor_the_order_of_samples_matter() -> None:
    p, given, truth = taken_over()
    verified = answers(1 - p.gather(1, given[:, None])[:, 0], 80)
    found = calibrate(Distribution(p), given, K, verified=verified, truth=truth).probabilities
    g = torch.Generator().manual_seed(1)
    names, order = torch.randperm(K, generator=g), torch.randperm(N, generator=g)
    renamed = torch.empty_like(p)
    renamed[:, names] = p
    again = calibrate(
        Distribution(renamed[order]), names[given][order], K,
        verified=verified[order], truth=names[truth][order],
    ).probabilities  # fmt: skip
    torch.testing.assert_close(again[:, names], found[order], rtol=1e-3, atol=1e-3)


def test_uerm_learns_from_decisions_and_from_nothing_else() -> None:
    p, given, truth = taken_over()

    def trained() -> UERM:
        uerm = UERM(given, K, warmup_epochs=0)
        uerm.observe(torch.zeros(N, 1), p.log(), torch.arange(N))
        return uerm

    alone, asked, kept, reverted = (trained() for _ in range(4))
    verified = answers(alone.evidence().uncertainty, 200)
    ids = verified.nonzero()[:, 0]
    asked.ledger.decide(ids, truth[ids])
    kept.ledger.keep(ids, truth[ids])
    reverted.ledger.revert(ids=ids)
    assert kept.ledger.fixed().equal(verified)
    assert not (kept.ledger.human_verified() | reverted.ledger.human_verified()).any()
    plain = alone.evidence().posterior.probabilities
    for other in (kept, reverted):
        assert torch.equal(other.evidence().posterior.probabilities, plain)
    assert len(alone.end_epoch()) < 10
    changes = asked.end_epoch()
    changed = torch.tensor([change.sample for change in changes])
    assert len(changed) > 30
    assert not verified[changed].any()
    assert (truth != given)[changed].float().mean() > 0.8
    right = [float((u.ledger.current_labels == truth).float().mean()) for u in (alone, asked)]
    gained = float((truth != given)[verified].float().sum()) / N  # by the answers themselves
    assert right[1] > right[0] + gained + 0.005
    assert asked.ledger.events()[-1].rule == "bayes", "what an answer changed is in the ledger"
