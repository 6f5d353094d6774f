"""Policies and the attention head, checked against their formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmuddle.uerm import Distribution, Evidence, Proposals, ema_margin, gather_evidence, scn
from unmuddle.uerm.importance import AttentionHead, rank_penalty
from unmuddle.uerm.policy import guarded, suggestions


def evidence(probabilities, original, current=None, uncertainty=None) -> Evidence:
    p = torch.tensor(probabilities)
    original = torch.tensor(original)
    current = None if current is None else torch.tensor(current)
    known = gather_evidence(Distribution(p), original, p.shape[1], current=current)
    return known if uncertainty is None else known._replace(uncertainty=torch.tensor(uncertainty))


def entries(p: Tensor, k: int) -> Distribution:
    """The k largest entries."""
    top = p.topk(k)
    return Distribution(top.values, top.indices.short())


@given(n=st.integers(0, 6), k=st.integers(2, 5), seed=st.integers(0, 2**32))
def test_margin_is_the_label_against_the_best_other(n: int, k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, k, generator=g).softmax(1)
    y = torch.randint(k, (n,), generator=g)
    expected = [p[i, y[i]] - max(p[i, j] for j in range(k) if j != y[i]) for i in range(n)]
    for distribution in (Distribution(p), entries(p, k)):
        assert torch.equal(distribution.margin(y), torch.tensor([float(v) for v in expected]))


def test_the_largest_entries_say_what_the_whole_distribution_says_of_them() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    two = entries(p, 2)
    labels = torch.tensor([1, 2])
    assert torch.equal(two.prob_of(labels), Distribution(p).prob_of(labels))
    for got, expected in zip(two.rival(labels), Distribution(p).rival(labels), strict=True):
        assert torch.equal(got, expected)
    # The smallest entry is not kept.
    assert two.prob_of(torch.tensor([2, 0])).tolist() == [0, 0]


def proposals(labels: list[int], margins: list[float]) -> Proposals:
    return Proposals(torch.tensor(labels), torch.tensor(margins), 0.0, "test")


def test_budget_goes_to_the_most_confident() -> None:
    known = evidence([[0.5, 0.5]] * 5, [0, 0, 0, 0, 1])
    wanted = proposals([1, 1, 1, 0, 0], [0.1, 0.9, 0.5, 2.0, 0.7])
    assert guarded(wanted, known, max_fraction=0.4).labels.tolist() == [0, 1, 0, 0, 0]
    assert guarded(wanted, known).labels.tolist() == [1, 1, 1, 0, 0]
    assert guarded(wanted, known, max_fraction=0).labels.tolist() == [0, 0, 0, 0, 1]


def test_relabeled_samples_keep_their_place_in_the_budget_and_may_return() -> None:
    known = evidence([[0.5, 0.5]] * 4, [0, 0, 0, 0], [1, 1, 0, 0])
    # Sample 0 stays relabeled though its margin is small, 1 returns, 2 and 3 want in.
    wanted = proposals([1, 0, 1, 1], [0.1, 0.0, 0.5, 0.9])
    assert guarded(wanted, known, max_fraction=0.5).labels.tolist() == [1, 0, 0, 1]


def test_a_class_keeps_its_floor() -> None:
    known = evidence([[0.5, 0.5]] * 6, [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1])
    wanted = proposals([1, 1, 1, 1, 0, 0], [0.3, 0.2, 0.1, 0.9, 0.4, 0.8])
    # Of class 0 at least half of four stays, and one has left; of class 1 one of two.
    found = guarded(wanted, known, class_floor=0.5)
    assert found.labels.tolist() == [1, 0, 0, 1, 1, 0]


@given(n=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_guards_hold_whatever_is_proposed(n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    original, current, labels = torch.randint(3, (3, n), generator=g).unbind()
    fraction, floor = torch.rand(2, generator=g).tolist()
    known = gather_evidence(Distribution(torch.rand(n, 3, generator=g).softmax(1)), original, 3)
    wanted = Proposals(labels, torch.randn(n, generator=g), 0.0, "test")
    found = guarded(wanted, known, max_fraction=fraction, class_floor=floor).labels
    assert int((found != original).sum()) <= fraction * n
    for label in range(3):
        given_as = original == label
        assert int((found[given_as] == label).sum()) >= floor * int(given_as.sum()) - 1e-9
    # Never anything but the proposed label or the one that stands.
    assert ((found == labels) | (found == original)).all()
    assert torch.equal(guarded(wanted, known._replace(current=current)).labels, labels)


def test_ema_margin_relabels_above_the_threshold_only() -> None:
    # Margins against the original label 0: 0.6, 0.4 (not above), -0.8.
    found = ema_margin(evidence([[0.2, 0.8], [0.3, 0.7], [0.9, 0.1]], [0, 0, 0]), threshold=0.5)
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.margin, torch.tensor([0.6, 0.4, -0.8]))
    assert found.rule == "ema_margin"
    assert found.threshold.tolist() == [0.5, 0.5, 0.5]


def test_ema_margin_takes_back_only_when_the_evidence_has_turned() -> None:
    # Three samples relabeled 0 -> 1 earlier; margins against 0 are 0.3 (kept), 0.1 and -0.4 (taken
    # back, below 0.4 - 0.2).
    found = ema_margin(evidence([[0.35, 0.65], [0.45, 0.55], [0.7, 0.3]], [0, 0, 0], [1, 1, 1]))
    assert found.labels.tolist() == [1, 0, 0]
    # The bound that each margin was compared with.
    torch.testing.assert_close(found.threshold, torch.tensor([0.4, 0.2, 0.2]).double())


def test_ema_margin_moves_on_to_a_better_class() -> None:
    found = ema_margin(evidence([[0.1, 0.2, 0.7]], [0], [1]))
    assert found.labels.tolist() == [2]


def test_scn_compares_with_the_current_label_and_forgets_the_original() -> None:
    # Relabeled 0 -> 1; the prediction prefers 0 again, by 0.1: too little. By 0.3: a new relabel.
    assert scn(evidence([[0.55, 0.45]], [0], [1]), group="all").labels.tolist() == [1]
    assert scn(evidence([[0.65, 0.35]], [0], [1]), group="all").labels.tolist() == [0]


def test_scn_low_group_is_the_most_uncertain_share() -> None:
    contradicted = evidence([[0.1, 0.9]] * 10, [0] * 10, uncertainty=[i / 10 for i in range(10)])
    assert scn(contradicted).labels.tolist() == [0] * 7 + [1] * 3
    assert scn(contradicted, group="all").labels.tolist() == [1] * 10
    with pytest.raises(ValueError, match="group: expected 'low' or 'all', got 'high'"):
        scn(contradicted, group="high")


def test_rank_penalty_by_hand() -> None:
    # 10 importances, 7 high of mean 0.9, 3 low of mean 0.8: 0.15 - 0.1.
    importance = torch.tensor([0.8, 0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9, 0.8, 0.9])
    assert rank_penalty(importance).item() == pytest.approx(0.05, abs=1e-6)
    assert rank_penalty(importance, delta=0.05).item() == 0
    assert rank_penalty(torch.tensor([0.5])).item() == 0


def test_attention_head_learns_which_labels_to_distrust_without_touching_the_classifier() -> None:
    torch.manual_seed(0)
    # The classifier is sure of class 0; the labels of rows with feature -1 say otherwise.
    features = torch.tensor([[1.0]] * 20 + [[-1.0]] * 10, requires_grad=True)
    logits = torch.tensor([[4.0, 0.0]] * 30, requires_grad=True)
    labels = torch.tensor([0] * 20 + [1] * 10)
    head = AttentionHead(1)
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(head(features), logits, labels).backward()
        optimizer.step()
    importance = head(features)
    assert importance[:20].min() > 0.8
    assert importance[20:].max() < 0.3
    assert features.grad is None
    assert logits.grad is None


def test_rank_penalty_keeps_importances_from_collapsing_to_one() -> None:
    # Every label agrees with its prediction, so the cross-entropy alone pulls every importance up.
    torch.manual_seed(0)
    features = torch.randn(64, 4)
    logits = torch.tensor([[6.0, 0.0]]).repeat(64, 1)
    head = AttentionHead(4)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(features), logits, torch.zeros(64, dtype=torch.int64)).backward()
        optimizer.step()
    ordered = head(features).detach().sort(descending=True).values
    assert ordered[:45].mean() - ordered[45:].mean() > 0.1


def test_suggestions_are_ranked_by_margin() -> None:
    current = torch.tensor([0, 1, 2, 0, 1, 2])
    labels = (current + torch.tensor([1, 0, 1, 0, 1, 0])) % 3
    wanted = Proposals(labels, torch.linspace(0, 1, 6), 0.5, "by hand")
    found = suggestions(wanted, current, torch.linspace(1, 0, 6), limit=2)
    assert [(s.sample, s.label, s.suggested, s.rule) for s in found] == [
        (4, 1, 2, "by hand"),
        (2, 2, 0, "by hand"),
    ]
    assert [s.uncertainty for s in found] == pytest.approx([0.2, 0.6])
    assert len(suggestions(wanted, current, torch.zeros(6))) == 3
