"""What the strategies draw is what they say, prints as code, and shrinks to a readable minimum."""

import pytest
import torch
from hypothesis import find, given, settings

from unmuddle.testing import Batch, ContrastiveBatch, NoisyLabels, strategies
from unmuddle.uerm import LabelLedger


@given(strategies.batches())
def test_a_batch_is_made_again_from_what_it_prints(batch: Batch) -> None:
    again = eval(repr(batch))
    assert torch.equal(again.features, batch.features)
    assert torch.equal(again.labels, batch.labels)
    assert batch.features.shape == (batch.n, batch.dim)
    assert batch.features.norm(dim=1).min() > 0
    assert len(batch.labels.unique()) == batch.classes


@pytest.mark.parametrize(
    ("structure", "holds"),
    [
        ("duplicates", lambda x: torch.equal(x[:3], x[3:])),
        ("antipodal", lambda x: torch.equal(x[:3], -x[3:])),
        ("random", lambda x: len(x.unique(dim=0)) == 6),
    ],
)
def test_structures(structure, holds) -> None:
    assert holds(Batch(6, 4, 2, structure).features)


def test_clustered_rows_are_nearest_to_their_class() -> None:
    batch = Batch(20, 8, 3, "clustered", seed=1)
    centres = torch.stack([batch.features[batch.labels == k].mean(0) for k in range(3)])
    assert torch.equal(torch.cdist(batch.features, centres).argmin(1), batch.labels)


@given(strategies.contrastive_batches())
def test_everything_of_a_contrastive_batch_fits_together(more: ContrastiveBatch) -> None:
    n, classes = more.batch.n, max(more.batch.classes, 2)
    assert more.features.shape == (n, more.views, more.batch.dim)
    assert more.mask.shape == (n, n)
    assert (more.mask >= 0).all()
    assert (more.weight > 0).all()
    assert more.key_features.shape == (more.keys, more.batch.dim)
    assert more.key_labels.shape == (more.keys,)
    torch.testing.assert_close(more.soft_labels.sum(1), torch.ones(n).double())
    assert more.multi_hot_labels.shape == (n, classes)
    own = torch.nn.functional.one_hot(more.labels, classes).bool()
    assert more.multi_hot_labels.bool()[own].all()
    kept = more.ignored_labels != -100
    assert torch.equal(more.ignored_labels[kept], more.labels[kept])


@pytest.mark.parametrize("kind", ["int", "soft", "multi-hot", "ignored", "large"])
def test_labels_of_every_kind(kind) -> None:
    @settings(max_examples=10)
    @given(strategies.labels(5, kind=kind))
    def check(labels) -> None:
        assert len(labels) == 5
        assert labels.is_floating_point() == (kind in ("soft", "multi-hot"))
        assert kind != "large" or labels.min() >= 2**62

    check()
    with pytest.raises(ValueError, match="kind: expected one of"):
        strategies.labels(5, kind="hard")


@given(strategies.noisy_labels())
def test_the_share_of_wrong_labels_is_the_rate(problem: NoisyLabels) -> None:
    wrong = (problem.labels != problem.truth).sum()
    assert wrong == round(problem.rate * problem.n)
    torch.testing.assert_close(problem.probabilities.sum(1), torch.ones(problem.n))
    assert torch.equal(eval(repr(problem)).labels, problem.labels)


@given(strategies.feature_maps(), strategies.embeddings(), strategies.temperatures(0.05, 5))
def test_feature_maps_embeddings_and_temperatures(maps, x, tau) -> None:
    assert maps.ndim == 4
    assert maps.isfinite().all()
    assert x.ndim == 2
    assert x.isfinite().all()
    assert 0.05 <= tau <= 5


@given(strategies.ledger_histories(samples=4, classes=3))
def test_histories_can_be_played(history) -> None:
    ledger = LabelLedger(torch.tensor([0, 1, 2, 0]), 3)
    for method, arguments in history:
        getattr(ledger, method)(**arguments)
    assert torch.equal(ledger.replay(), ledger.current_labels)
    ledger.revert(ids=torch.arange(4))
    assert torch.equal(ledger.current_labels, ledger.original_labels)


def test_what_is_drawn_shrinks_to_a_readable_minimum() -> None:
    assert find(strategies.batches(), lambda b: b.n > 3) == Batch(4, 1, 1, "random", 0)
    found = find(strategies.batches(), lambda b: b.structure == "antipodal" and b.classes > 1)
    assert found == Batch(2, 1, 2, "antipodal", 0)
    history = find(
        strategies.ledger_histories(samples=3, classes=2),
        lambda steps: any(method == "revert" for method, _ in steps),
    )
    assert [method for method, _ in history] == ["revert"]


def test_profiles(monkeypatch) -> None:
    monkeypatch.delenv("UNMUDDLE_HYPOTHESIS_PROFILE", raising=False)
    assert strategies.profile().max_examples == 50
    monkeypatch.setenv("UNMUDDLE_HYPOTHESIS_PROFILE", "thorough")
    assert strategies.profile().max_examples == 2000
    assert strategies.profile("ci").max_examples == 200
    with pytest.raises(ValueError, match="profile: expected one of .*, got 'slow'"):
        strategies.profile("slow")
    before = settings()
    try:
        strategies.load_profile("ci")
        assert settings().max_examples == 200
    finally:
        settings.register_profile("before", before)
        settings.load_profile("before")


@pytest.mark.parametrize("wrong", [{"n": 0}, {"classes": 0}, {"structure": "sorted"}])
def test_a_batch_that_cannot_be_is_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected n, dim, classes >= 1 and one of"):
        Batch(**({"n": 4, "dim": 2, "classes": 2} | wrong))


def test_temperatures_need_a_range() -> None:
    for least, most in ((2.0, 1.0), (0.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="temperatures: expected 0 < least <= most"):
            strategies.temperatures(least, most)
