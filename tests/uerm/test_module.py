"""UERM as a whole: what a batch does, what an epoch's end does, and what never happens."""

from functools import partial

import pytest
import torch
from torch import Tensor

from unmuddle import UERM
from unmuddle.uerm import Evidence, Proposals, ema_margin

FREE = {"max_fraction": 1.0, "class_floor": 0.0}  # of these few samples any may change


def feed(uerm: UERM, logits: list[list[float]], ids: list[int]):
    return uerm(torch.zeros(len(ids), 4), torch.tensor(logits), torch.tensor(ids))


def test_running_mean_of_predictions() -> None:
    uerm = UERM(torch.tensor([0, 1]), 2, momentum=0.75)
    feed(uerm, [[0.0, 0.0]], [1])
    uerm.end_epoch()  # first sight: taken as it is
    feed(uerm, [[100.0, -100.0]], [1])
    uerm.end_epoch()
    uerm.end_epoch()  # not seen in this epoch: stays as it is
    torch.testing.assert_close(uerm.predictions.mean[1], torch.tensor([0.625, 0.375]))
    assert uerm.predictions.seen.tolist() == [0, 2]
    assert not uerm.predictions.mean[0].any()


def test_sightings_of_a_sample_in_an_epoch_count_once_by_their_mean() -> None:
    views = UERM(torch.tensor([0, 1]), 2, momentum=0.7)
    feed(views, [[50.0, -50.0], [-50.0, 50.0], [50.0, -50.0]], [0, 0, 1])
    feed(views, [[-50.0, 50.0], [-50.0, 50.0]], [0, 0])
    known = views.evidence().predictions.probabilities
    torch.testing.assert_close(known, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    views.end_epoch()
    feed(views, [[50.0, -50.0], [50.0, -50.0]], [0, 0])
    views.end_epoch()
    torch.testing.assert_close(views.predictions.mean[0], torch.tensor([0.475, 0.525]))


def test_a_contradicted_label_is_relabeled_recorded_and_trained_on() -> None:
    uerm = UERM(torch.tensor([0, 1, 1]), 2, warmup_epochs=2, **FREE)
    batch = partial(feed, uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    out = batch()
    assert out.labels.tolist() == [0, 1, 1]
    assert out.weight.tolist() == [1, 1, 1]
    assert uerm.end_epoch() == []
    batch()
    events = uerm.end_epoch()
    assert [(e.sample, e.epoch, e.old, e.new, e.rule) for e in events] == [
        (1, 2, 1, 0, "bayes"),
        (2, 2, 1, 0, "bayes"),
    ]
    assert all(e.margin >= e.threshold > 0.9 and e.uncertainty > 0.9 for e in events)
    out = batch()
    assert out.labels.tolist() == [0, 0, 0]
    assert (out.weight > 0.99).all()
    assert uerm.ledger.original().tolist() == [0, 1, 1]


def test_uncertain_labels_weigh_less_after_warm_up() -> None:
    uerm = UERM(torch.tensor([0, 1]), 2, warmup_epochs=0, policy=partial(ema_margin, threshold=2.0))
    feed(uerm, [[9.0, 0.0], [9.0, 0.0]], [0, 1])
    uerm.end_epoch()
    out = feed(uerm, [[9.0, 0.0], [9.0, 0.0]], [0, 1])
    assert out.weight[0] > 0.99
    assert out.weight[1] < 0.01
    torch.testing.assert_close(out.weight, 1 - out.uncertainty)


def test_unseen_samples_are_never_relabeled() -> None:
    def everything_to_class_one(evidence: Evidence) -> Proposals:
        ones = torch.ones_like(evidence.current)
        return Proposals(ones, ones.float(), 0.0, "all to one")

    uerm = UERM(torch.tensor([0, 0, 0]), 2, policy=everything_to_class_one, warmup_epochs=0, **FREE)
    feed(uerm, [[1.0, 0.0]], [1])
    uerm.end_epoch()
    assert uerm.ledger.labels().tolist() == [0, 1, 0]


def test_a_reverted_label_stays() -> None:
    uerm = UERM(torch.tensor([1]), 2, warmup_epochs=0, **FREE)
    feed(uerm, [[9.0, 0.0]], [0])
    assert len(uerm.end_epoch()) == 1
    uerm.ledger.revert(ids=torch.tensor([0]))
    feed(uerm, [[9.0, 0.0]], [0])
    assert uerm.end_epoch() == []
    assert uerm.ledger.labels().tolist() == [1]


def test_a_confirmed_label_stays() -> None:
    # Reverted before anything had changed it: somebody looked at it and it is right.
    uerm = UERM(torch.tensor([1, 1, 1]), 2, warmup_epochs=0, **FREE)
    uerm.ledger.revert(ids=torch.tensor([0]))
    uerm.ledger.decide(torch.tensor([2]), torch.tensor([1]))
    feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    assert [event.sample for event in uerm.end_epoch()] == [1]


@pytest.mark.parametrize("estimator", ["margin", "attention"])
def test_an_overflowed_batch_leaves_no_trace(estimator: str) -> None:
    torch.manual_seed(0)
    uerm = UERM(torch.tensor([0, 1]), 2, estimator=estimator, feature_dim=4, warmup_epochs=0)
    bad = torch.tensor([[torch.inf, 0.0], [torch.nan, 0.0], [0.0, 2.0]])
    features = torch.tensor([[torch.nan] * 4] * 2 + [[1.0] * 4])
    uerm(features, bad, torch.tensor([0, 1, 1]))
    uerm.end_epoch()
    assert uerm.predictions.seen.tolist() == [0, 1]
    torch.testing.assert_close(
        uerm.predictions.mean[1], torch.tensor([0.0, 2.0]).softmax(0), atol=1.5 * 2**-16, rtol=0
    )
    assert uerm.uncertainty.isfinite().all()
    assert uerm.weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_ids_of_any_integer_type(dtype: torch.dtype) -> None:
    uerm = UERM(torch.tensor([0, 1, 1]), 2)
    out = uerm(torch.zeros(2, 4), torch.zeros(2, 2), torch.tensor([0, 2], dtype=dtype))
    assert out.labels.tolist() == [0, 1]
    uerm.end_epoch()
    assert uerm.predictions.seen.tolist() == [1, 0, 1]


def test_a_failing_policy_counts_no_epoch_and_changes_nothing() -> None:
    def wrong_shape(evidence: Evidence) -> Proposals:
        evidence.predictions.probabilities.zero_()
        return Proposals(evidence.current[:1], evidence.uncertainty, 0.0, "wrong")

    uerm = UERM(torch.tensor([0, 1]), 2, policy=wrong_shape, warmup_epochs=0)
    feed(uerm, [[9.0, 0.0]] * 2, [0, 1])
    with pytest.raises(ValueError, match=r"policy: expected labels of shape \(n,\) = \(2,\)"):
        uerm.end_epoch()
    assert uerm.epoch == 0
    assert uerm.evidence().predictions.probabilities.any()


def test_eval_mode_writes_nothing() -> None:
    uerm = UERM(torch.tensor([0, 1]), 2).eval()
    before = {name: value.clone() for name, value in uerm.state_dict().items()}
    feed(uerm, [[9.0, 0.0]], [1])
    assert all(torch.equal(value, before[name]) for name, value in uerm.state_dict().items())


@pytest.mark.parametrize("ids", [[0, 2], [-1, 0]])
def test_an_id_out_of_range_fails_before_anything_is_written(ids: list[int]) -> None:
    uerm = UERM(torch.tensor([0, 1]), 2)
    with pytest.raises(RuntimeError, match="ids: expected 0 <= id < 2"):
        feed(uerm, [[9.0, 0.0]] * 2, ids)
    assert not uerm.predictions.total.any()


def test_continuing_from_a_saved_state_makes_the_same_decisions() -> None:
    def epoch(uerm: UERM, seed: int) -> None:
        logits = 5 * torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        uerm(torch.zeros(8, 4), logits, torch.arange(8))
        uerm.end_epoch()

    labels = torch.arange(8) % 3
    straight, first, second = (UERM(labels, 3, warmup_epochs=1) for _ in range(3))
    for seed in range(6):
        epoch(straight, seed)
    for seed in range(3):
        epoch(first, seed)
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        epoch(second, seed)
    assert straight.ledger.events() == second.ledger.events()
    assert len(straight.ledger.events()) > 0
    assert torch.equal(straight.predictions.mean, second.predictions.mean)


def test_attention_trains_its_head_through_the_regularizer() -> None:
    uerm = UERM(
        torch.tensor([0, 1, 1, 0]), 2, estimator="attention", feature_dim=4, warmup_epochs=0
    )
    features = torch.randn(4, 4)
    out = uerm(features, torch.randn(4, 2), torch.arange(4))
    out.regularizer.backward()
    assert all(p.grad is not None for p in uerm.parameters())
    assert not out.weight.requires_grad
    uerm.end_epoch()
    importance = uerm.attention(features).detach()
    torch.testing.assert_close(uerm.uncertainty, 1 - importance, atol=1.5 * 2**-16, rtol=0)


def test_scn_decides_on_the_last_epoch_alone() -> None:
    uerm = UERM(torch.tensor([0]), 2, policy="scn", estimator="margin", warmup_epochs=0)
    assert uerm.momentum == 0
    for logits in ([[9.0, 0.0]], [[0.0, 9.0]]):
        feed(uerm, logits, [0])
        uerm.end_epoch()
    torch.testing.assert_close(
        uerm.predictions.mean[0], torch.tensor([0.0, 9.0]).softmax(0), atol=1.5 * 2**-16, rtol=0
    )


def test_batch_path_compiles_into_one_graph() -> None:
    uerm = UERM(torch.arange(8) % 3, 3, warmup_epochs=0)
    plain = UERM(torch.arange(8) % 3, 3, warmup_epochs=0)
    batch = (torch.randn(4, 5), torch.randn(4, 3), torch.tensor([0, 3, 3, 5]))
    compiled = torch.compile(uerm, fullgraph=True, backend="aot_eager")(*batch)
    for got, expected in zip(compiled, plain(*batch), strict=True):
        torch.testing.assert_close(got, expected)
    for name, value in uerm.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("num_classes: expected at least 2, got 1", {"num_classes": 1}),
        ("estimator: expected some of .* got 'size'", {"estimator": "size"}),
        ("estimator: expected some of .* got 'size'", {"estimator": ["margin", "size"]}),
        ("outcome: expected one of .* got 'medium'", {"outcome": "medium"}),
        ("history: expected one of .* got 'none'", {"history": "none"}),
        ("dtype: expected one of .* got torch.float64", {"dtype": torch.float64}),
        ("collect: expected one of .* got 'tax'", {"collect": ["tax"]}),
        ("max_fraction: expected a share from 0 to 1, got 2", {"max_fraction": 2}),
        ("class_floor: expected a share from 0 to 1, got -0.1", {"class_floor": -0.1}),
        ("k: expected at least 1, got 0", {"k": 0}),
        ("queue: expected at least 1, got 0", {"queue": 0}),
        ("policy: expected one of .* or a callable, got 'ema'", {"policy": "ema"}),
        ("policy: expected a name or a callable, got 5", {"policy": 5}),
        ("momentum: expected 0 <= momentum < 1, got 1", {"momentum": 1}),
        ("warmup_epochs: expected a whole number of at least 0, got -1", {"warmup_epochs": -1}),
        ("warmup_epochs: expected a whole number of at least 0, got 0.4", {"warmup_epochs": 0.4}),
        ("feature_dim: needed for importance", {"estimator": "attention"}),
        ("feature_dim: needed for votes", {"collect": ["votes"]}),
    ],
)
def test_wrong_options_are_named(message: str, options: dict) -> None:
    with pytest.raises(ValueError, match=message):
        UERM(**({"labels": torch.tensor([0, 0]), "num_classes": 2} | options))


@pytest.mark.parametrize(
    ("message", "batch"),
    [
        (r"logits: expected shape \(N, K\) = \(2, 2\), got \(2, 3\)",
         (torch.zeros(2, 4), torch.zeros(2, 3), torch.tensor([0, 1]))),
        (r"features: expected shape \(N, D\) = \(2, D\), got \(3, 4\)",
         (torch.zeros(3, 4), torch.zeros(2, 2), torch.tensor([0, 1]))),
        (r"ids: expected \(N,\) integers, got torch.float32",
         (torch.zeros(2, 4), torch.zeros(2, 2), torch.tensor([0.0, 1.0]))),
    ],
)  # fmt: skip
def test_wrong_batches_are_named(message: str, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=message):
        UERM(torch.tensor([0, 1]), 2)(*batch)
