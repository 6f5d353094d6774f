"""UERM as a whole: what a batch does, what an epoch's end does, and what never happens."""

import pickle
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers.operators import Operators
from unmuddle import UERM
from unmuddle.uerm import Evidence, Proposals, ema_margin, scn
from unmuddle.uerm.uncertainty import mislabeled

FREE = {"max_fraction": 1.0, "class_floor": 0.0}  # of these few samples any may change


def feed(uerm: UERM, logits: list[list[float]], ids: list[int]):
    return uerm(torch.zeros(len(ids), 4), torch.tensor(logits), torch.tensor(ids))


def test_pickle_keeps_everything() -> None:
    uerm = UERM(torch.tensor([0, 1]), 2, warmup_epochs=0)
    feed(uerm, [[2.0, 0.0]], [1])
    copy = pickle.loads(pickle.dumps(uerm))
    assert copy.end_epoch() == uerm.end_epoch()
    assert torch.equal(copy.uncertainty, uerm.uncertainty)
    assert uerm.uncertainty.any()


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


@pytest.mark.parametrize("quarantine", [True, False])
def test_a_contradicted_label_is_relabeled_and_recorded(quarantine: bool) -> None:
    uerm = UERM(torch.tensor([0, 1, 1]), 2, warmup_epochs=2, quarantine=quarantine, **FREE)
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
    assert all(e.margin > 0.9 > e.threshold == 0.5 and e.uncertainty > 0.9 for e in events)
    out = batch()
    assert out.labels.tolist() == [0, 0, 0]
    assert out.targets.tolist() == [[1, 0]] * 3
    assert out.weight[0] > 0.99
    assert (out.weight[1:] == 0 if quarantine else out.weight[1:] > 0.99).all()
    assert uerm.ledger.original_labels.tolist() == [0, 1, 1]


def test_the_weighted_mean_by_hand() -> None:
    out = feed(UERM(torch.tensor([0, 1, 1]), 2), [[0.0, 0.0]] * 3, [0, 1, 2])
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert out.weighted_mean(losses).item() == pytest.approx(7 / 3)
    weighted = out._replace(weight=torch.tensor([1.0, 0.5, 0.0])).weighted_mean(losses)
    assert weighted.item() == pytest.approx(4 / 3)
    weighted.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([2 / 3, 1 / 3, 0]))
    small = out._replace(weight=torch.full((3,), 1e-30)).weighted_mean(losses)
    assert small.item() == pytest.approx(7 / 3), "however small the weights are"
    nothing = out._replace(weight=torch.zeros(3)).weighted_mean(losses.detach() / 0)
    assert nothing == 0, "a loss that does not count may be infinite"
    hidden = out._replace(weight=torch.tensor([1.0, 0.5, 0.0])).weighted_mean(losses.log() / 0)
    assert hidden.isnan(), "one that counts may not"
    empty = out._replace(weight=torch.zeros(0)).weighted_mean(losses[:0])
    assert empty == 0
    with pytest.raises(
        ValueError, match=r"losses: expected shape \(N,\) = \(3,\), .* got \(3, 1\)"
    ):
        out.weighted_mean(losses[:, None])
    with pytest.raises(ValueError, match=r"one loss a sample \(reduction='none'\), got \(\)"):
        out.weighted_mean(losses.mean())


def test_a_batch_of_relabeled_samples_alone_trains_nothing() -> None:
    uerm = UERM(torch.tensor([0, 0, 0, 1]), 2, warmup_epochs=0, **FREE)
    feed(uerm, [[9.0, 0.0]] * 4, [0, 1, 2, 3])
    assert [event.sample for event in uerm.end_epoch()] == [3]
    network = torch.nn.Linear(4, 2)
    logits = network(torch.randn(1, 4))
    out = uerm(torch.zeros(1, 4), logits, torch.tensor([3]))
    losses = torch.nn.functional.cross_entropy(logits, out.targets, reduction="none")
    assert out.weight.sum() == 0
    loss = out.weighted_mean(losses) + out.regularizer
    loss.backward()
    assert loss == 0
    assert not network.weight.grad.any(), "neither NaN nor anything else"


def test_by_default_a_label_weighs_by_how_likely_it_is_right() -> None:
    uerm = UERM(torch.tensor([0, 1, 0]), 2, warmup_epochs=0)
    feed(uerm, [[2.0, 0.0], [0.6, 0.0], [0.0, 0.5]], [0, 1, 2])
    assert uerm.end_epoch() == []
    torch.testing.assert_close(uerm.uncertainty, mislabeled(uerm.evidence()))
    torch.testing.assert_close(uerm.weight, 1 - uerm.uncertainty)


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
    assert uerm.ledger.current_labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("estimator", ["mislabeled", "attention"])
def test_a_sample_never_seen_is_trusted_as_given(estimator: str, top_k: int | None) -> None:
    options = {"estimator": estimator, "feature_dim": 4, "top_k": top_k}
    uerm = UERM(torch.arange(6) % 3, 3, warmup_epochs=0, **options)
    feed(uerm, [[0.0, 1.0, 2.0]] * 4, [0, 1, 2, 3])
    uerm.end_epoch()
    out = feed(uerm.eval(), [[0.0, 1.0, 2.0]] * 6, list(range(6)))
    assert out.uncertainty[4:].tolist() == [0, 0]
    assert out.weight[4:].tolist() == [1, 1]
    assert torch.equal(out.targets[4:], torch.eye(3)[[1, 2]])
    assert out.uncertainty[:4].any()


def test_a_reverted_label_stays() -> None:
    uerm = UERM(torch.tensor([1]), 2, warmup_epochs=0, **FREE)
    feed(uerm, [[9.0, 0.0]], [0])
    assert len(uerm.end_epoch()) == 1
    uerm.ledger.revert(ids=torch.tensor([0]))
    feed(uerm, [[9.0, 0.0]], [0])
    assert uerm.end_epoch() == []
    assert uerm.ledger.current_labels.tolist() == [1]


def test_a_confirmed_label_stays() -> None:
    # Reverted before anything had changed it: somebody looked at it and it is right.
    uerm = UERM(torch.tensor([1, 1, 1]), 2, warmup_epochs=0, **FREE)
    uerm.ledger.revert(ids=torch.tensor([0]))
    uerm.ledger.decide(torch.tensor([2]), torch.tensor([1]))
    feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    assert [event.sample for event in uerm.end_epoch()] == [1]


@pytest.mark.parametrize("estimator", ["mislabeled", "attention"])
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


def test_narrow_ids_of_many_samples() -> None:
    uerm = UERM(torch.zeros(70_000, dtype=torch.int64), 2)
    ids = torch.tensor([5000], dtype=torch.int16)
    assert uerm(torch.zeros(1, 4), torch.zeros(1, 2), ids).labels.tolist() == [0]


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


def test_labels_that_somebody_chose_are_trusted() -> None:
    uerm = UERM(torch.tensor([1, 1, 1]), 2, warmup_epochs=0, **FREE)
    uerm.ledger.decide(torch.tensor([1]), torch.tensor([0]))
    uerm.ledger.keep(torch.tensor([0]), torch.tensor([1]))
    out = feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    uerm.end_epoch()
    out = feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    assert out.labels.tolist() == [1, 0, 0]
    assert out.weight.tolist() == [1, 1, 0]


def test_an_answer_that_the_label_is_right_speaks_for_its_like() -> None:
    uerm = UERM(torch.tensor([1, 1, 1]), 2, warmup_epochs=0, **FREE)
    uerm.ledger.decide(torch.tensor([0, 1]), torch.tensor([1, 0]))
    feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    uerm.end_epoch()
    assert uerm.uncertainty[2].item() == pytest.approx(0.5, abs=0.25)


def test_decisions_between_epochs_take_effect_before_the_next_one() -> None:
    uerm = UERM(torch.tensor([1] * 6 + [0] * 6), 2, warmup_epochs=2, max_fraction=0, class_floor=0)
    uerm.ledger.decide(torch.tensor([0]), torch.tensor([0]))
    for _ in range(2):
        feed(uerm, [[1.0, 0.0]] * 12, range(12))
        assert uerm.relabel() == []
        assert torch.equal(uerm.transition, torch.eye(2))  # within the warm-up
        uerm.end_epoch()
    probabilities, before = uerm.evidence().predictions.probabilities, uerm.transition.clone()
    uerm.ledger.decide(torch.arange(1, 5), torch.zeros(4, dtype=torch.int64))
    assert uerm.relabel() == []
    assert uerm.transition[0, 1] > before[0, 1] + 0.05  # labels 1 of class 0
    assert uerm.weight[:5].tolist() == [1] * 5
    assert uerm.epoch == 2
    assert torch.equal(uerm.evidence().predictions.probabilities, probabilities)


def test_relabeling_between_epochs_records_the_epoch_that_ended() -> None:
    uerm = UERM(torch.tensor([0, 1, 1]), 2, warmup_epochs=1, **FREE)
    feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    assert [event.epoch for event in uerm.end_epoch()] == [1, 1]
    uerm.ledger.revert(ids=torch.tensor([1]))
    uerm.ledger.record(torch.tensor([2]), torch.tensor([1]), epoch=1, rule="mine")
    assert [event[1:5] for event in uerm.relabel()] == [(2, 1, 1, 0)]
    assert uerm.relabel() == []


def test_an_estimator_sees_the_uncertainty_of_the_labels_that_it_is_asked_about() -> None:
    seen = []

    def noted(evidence: Evidence) -> Tensor:
        right = evidence.posterior.prob_of(evidence.current)
        seen.append(float((evidence.uncertainty - (1 - right)).abs().max()))
        return evidence.uncertainty.sqrt()

    uerm = UERM(torch.tensor([0, 1, 1]), 2, warmup_epochs=0, estimator=noted, **FREE)
    feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
    assert len(uerm.end_epoch()) == 2
    assert seen == [0, 0]


def test_evidence_is_a_copy() -> None:
    uerm = UERM(torch.tensor([0, 1, 1]), 2)
    uerm.evidence().original[0] = 1
    assert uerm.ledger.original_labels.tolist() == [0, 1, 1]


def test_observing_once_an_epoch_instead_of_batches() -> None:
    watched, shown = UERM(torch.tensor([0, 1]), 2), UERM(torch.tensor([0, 1]), 2)
    batch = (torch.zeros(2, 4), torch.randn(2, 2), torch.tensor([0, 1]))
    watched(*batch)
    out = shown(*batch, observe=False)
    assert not shown.predictions.total.any()
    shown.eval()
    shown.observe(*batch)
    assert torch.equal(shown.predictions.total, watched.predictions.total)
    assert out.labels.tolist() == [0, 1]


def test_suggestions_change_nothing_and_leave_out_what_somebody_chose() -> None:
    uerm = UERM(torch.tensor([1, 1, 1, 0]), 2, warmup_epochs=9, policy="ema_margin", **FREE)
    uerm.ledger.decide(torch.tensor([1]), torch.tensor([1]))
    feed(uerm, [[9.0, 0.0], [9.0, 0.0], [4.0, 0.0], [9.0, 0.0]], [0, 1, 2, 3])
    before = {name: value.clone() for name, value in uerm.state_dict().items()}
    found = uerm.suggest()
    assert [(s.sample, s.label, s.suggested, s.rule) for s in found] == [
        (0, 1, 0, "ema_margin"), (2, 1, 0, "ema_margin"),
    ]  # fmt: skip
    assert found[0].margin > found[1].margin > found[1].threshold - 1e-9
    assert [s.sample for s in uerm.suggest(limit=1)] == [0]
    for name, value in uerm.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_labels_to_verify_are_drawn_from_the_doubtful_quarter_anew_after_each_decision() -> None:
    n = 40
    uerm = UERM(torch.zeros(n, dtype=torch.int64), 3, warmup_epochs=9)
    logits = torch.stack([torch.linspace(4, -4, n - 1), torch.zeros(n - 1), -torch.ones(n - 1)], 1)
    uerm.observe(torch.zeros(n - 1, 1), logits, torch.arange(n - 1))  # all but the last
    asked: list[int] = []
    for _ in range(3):
        found = uerm.suggest(5, to_verify=True)
        assert [(s.label, s.suggested, s.rule) for s in found] == [(0, 1, "verify")] * 5
        assert all(s.margin == s.uncertainty for s in found)
        samples = [s.sample for s in found]
        assert samples == [s.sample for s in uerm.suggest(5, to_verify=True)]
        assert samples == sorted(samples, reverse=True), "most doubtful first"
        assert min(samples) >= 28 - len(asked)
        assert max(samples) < n - 1, "one that was never seen cannot be judged"
        assert not set(samples) & set(asked)
        uerm.ledger.decide(torch.tensor(samples), torch.zeros(5, dtype=torch.int64))
        asked += samples
    assert asked != [*range(38, 23, -1)], "not the most doubtful ones alone"
    assert len(uerm.suggest(to_verify=True)) == 6


@pytest.mark.parametrize(
    ("at_most", "options"),
    [
        (25, {}),
        (25, {"dtype": torch.float16}),
        (35, {"top_k": 2}),
        (50, {"estimator": "attention", "feature_dim": 4}),
    ],
)
def test_a_batch_calls_few_operators_and_never_waits_for_the_host(at_most: int, options) -> None:
    uerm = UERM(torch.arange(50) % 3, 3, **options)
    batch = (torch.randn(16, 4), torch.randn(16, 3), torch.arange(16))
    with Operators() as operators:
        uerm(*batch)
    assert len(operators.called) <= at_most, operators.called
    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "item", "unique")
    assert not [name for name in operators.called if any(word in name for word in waiting)]


def test_a_batch_on_a_gpu_launches_twelve_operations() -> None:
    uerm = UERM(torch.arange(50) % 3, 3)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda:0"):
        uerm._apply(partial(torch.empty_like, device="cuda:0"))
        batch = (torch.empty(16, 4), torch.empty(16, 3), torch.empty(16, dtype=torch.int64))
        with Operators() as operators:
            uerm(*batch)
    assert len(operators.called) <= 12, operators.called


@pytest.mark.parametrize("options", [{}, {"estimator": "attention"}, {"top_k": 2}])
def test_every_kind_of_evidence_survives_saving_and_leads_to_the_same_decisions(options) -> None:
    def epoch(uerm: UERM, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        ids = torch.randperm(60, generator=g)
        logits = torch.randn(60, 3, generator=g)
        logits[torch.arange(60), ids % 3] += 4
        features = torch.eye(3)[ids % 3].repeat(1, 2) + 0.1 * torch.randn(60, 6, generator=g)
        for part in torch.arange(60).split(20):
            uerm(features[part], logits[part], ids[part])
        uerm.end_epoch()

    def new() -> UERM:
        torch.manual_seed(0)
        wrong = torch.arange(60) < 12
        labels = torch.where(wrong, (torch.arange(60) + 1) % 3, torch.arange(60) % 3)
        return UERM(labels, 3, warmup_epochs=1, feature_dim=6, policy="ema_margin", **options)

    straight, first, second = new(), new(), new()
    for seed in range(5):
        epoch(straight, seed)
    for seed in range(2):
        epoch(first, seed)
    second.load_state_dict(first.state_dict())
    for seed in range(2, 5):
        epoch(second, seed)
    assert len(straight.ledger.events()) >= 10
    for name, value in straight.state_dict().items():
        assert torch.equal(value.nan_to_num(), second.state_dict()[name].nan_to_num()), name


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("differ from the labels", {"labels": torch.tensor([1, 0, 1])}),
        (r"original_labels: expected \(4,\), got \(3,\)", {"labels": torch.tensor([0, 1, 1, 0])}),
        ("predictions.classes: expected .* other options", {"top_k": 3}),
        (r"transition: expected \(4, 4\), got \(3, 3\).* other options", {"num_classes": 4}),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(message: str, other: dict) -> None:
    saved = UERM(torch.tensor([0, 1, 1]), 3, warmup_epochs=0)
    feed(saved, [[9.0, 0.0, 0.0]] * 3, [0, 1, 2])
    saved.end_epoch()
    uerm = UERM(**({"labels": torch.tensor([0, 1, 1]), "num_classes": 3} | other))
    before = {name: value.clone() for name, value in uerm.state_dict().items()}
    with pytest.raises(RuntimeError, match=message):
        uerm.load_state_dict(saved.state_dict())
    assert uerm.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in uerm.state_dict().items())


@pytest.mark.parametrize(
    ("message", "saved", "other"),
    [
        ("attention.*: expected no such tensor; was it saved by a UERM of other options",
         {"num_classes": 3, "estimator": "attention", "feature_dim": 4}, {"num_classes": 3}),
        (r"transition: expected \(3, 3\), got \(9, 9\); was it saved by a UERM of other options",
         {"num_classes": 9, "top_k": 3}, {"num_classes": 3, "top_k": 3}),
    ],
)  # fmt: skip
def test_a_state_that_holds_more_is_refused_whole(message: str, saved: dict, other: dict) -> None:
    full = UERM(torch.tensor([0, 1, 1]), warmup_epochs=0, **saved)
    feed(full, [[9.0] + [0.0] * (full.num_classes - 2) + [1.0]] * 3, [0, 1, 2])
    full.end_epoch()
    uerm = UERM(torch.tensor([0, 1, 1]), **other)
    with pytest.raises(RuntimeError, match=message):
        uerm.load_state_dict(full.state_dict())
    assert uerm.epoch == 0
    assert not uerm.ledger.events()
    assert not uerm.predictions.mean.any()


def test_inside_a_larger_model_it_loads_what_is_its_own() -> None:
    def new() -> torch.nn.ModuleDict:
        return torch.nn.ModuleDict({"net": torch.nn.Linear(2, 2), "uerm": UERM([0, 1], 2)})

    saved = new()
    feed(saved["uerm"], [[9.0, 0.0]], [0])
    saved["uerm"].end_epoch()
    model = new()
    model.load_state_dict(saved.state_dict())
    assert model["uerm"].epoch == 1


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("options", [{}, {"estimator": "attention"}])
def test_it_keeps_its_precision_inside_a_model_of_another(convert: str, options: dict) -> None:
    uerm = UERM(torch.arange(60) % 3, 3, warmup_epochs=0, feature_dim=4, **options)
    expected = {name: value.dtype for name, value in uerm.state_dict().items()}
    getattr(torch.nn.Sequential(uerm), convert)()
    assert {name: value.dtype for name, value in uerm.state_dict().items()} == expected
    dtype = getattr(torch.zeros(()), convert)().dtype
    for _ in range(2):
        uerm(torch.randn(60, 4, dtype=dtype), torch.randn(60, 3, dtype=dtype), torch.arange(60))
        uerm.end_epoch()
    assert uerm.weight.isfinite().all()
    assert next(iter(uerm.to("meta").state_dict().values())).device.type == "meta"


def test_an_epoch_ends_in_inference_mode_too() -> None:
    def run(mode: bool) -> UERM:
        uerm = UERM(torch.tensor([0, 1, 1]), 2, warmup_epochs=0, **FREE)
        for _ in range(2):
            feed(uerm, [[9.0, 0.0]] * 3, [0, 1, 2])
            with torch.inference_mode(mode):
                uerm.end_epoch()
                uerm.suggest()
        uerm.load_state_dict(uerm.state_dict())
        return uerm

    assert run(True).ledger.events() == run(False).ledger.events() != []


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("estimator: expected numbers from 0 to 1", {"estimator": lambda e: e.uncertainty + 2}),
        (r"estimator: expected \(n,\), got float", {"estimator": lambda e: 0.5}),
        ("policy: expected Proposals, got tuple", {"policy": lambda e: (e.current, e.uncertainty)}),
        ("policy: expected Proposals, got NoneType", {"policy": lambda e: None}),
        (r"policy: expected margin of shape \(n,\), got float",
         {"policy": lambda e: Proposals(e.current, 0.5, 0.0, "mine")}),
        (r"policy: expected one threshold, or thresholds of shape \(n,\) = \(2,\), got \(3,\)",
         {"policy": lambda e: Proposals(e.current, e.uncertainty, torch.zeros(3), "mine")}),
        ("estimator: expected numbers from 0 to 1", {"estimator": lambda e: e.uncertainty * torch.nan}),
        ("policy: expected integer labels from 0 to 1",
         {"policy": lambda e: Proposals(e.current + 5, e.uncertainty, 0.0, "mine")}),
        ("policy: expected integer labels from 0 to 1",
         {"policy": lambda e: Proposals(e.current.float(), e.uncertainty, 0.0, "mine")}),
        ("policy: expected numbers as margin",
         {"policy": lambda e: Proposals(e.current, e.uncertainty * torch.nan, 0.0, "mine")}),
    ],
)  # fmt: skip
def test_what_a_policy_or_estimator_may_not_return(message: str, options: dict) -> None:
    uerm = UERM(torch.tensor([0, 1]), 2, warmup_epochs=0, **options)
    feed(uerm, [[9.0, 0.0]] * 2, [0, 1])
    for call in (uerm.end_epoch, uerm.suggest):
        with pytest.raises(ValueError, match=message):
            call()
    assert uerm.epoch == 0
    assert (uerm.weight == 1).all()


def test_a_policy_may_write_to_its_evidence() -> None:
    def in_place(evidence: Evidence) -> Proposals:
        evidence.predictions.probabilities.zero_()
        evidence.original.fill_(0)
        evidence.current[1] = 0
        return Proposals(evidence.current, torch.ones(2), 0.5, "in place")

    uerm = UERM(torch.tensor([0, 1]), 2, policy=in_place, warmup_epochs=0, **FREE)
    feed(uerm, [[9.0, 0.0]] * 2, [0, 1])
    assert [(e.sample, e.old, e.new) for e in uerm.end_epoch()] == [(1, 1, 0)]
    assert uerm.predictions.mean.any()
    assert uerm.ledger.original_labels.tolist() == [0, 1]


def test_an_estimator_may_write_to_its_evidence() -> None:
    def in_place(evidence: Evidence) -> Tensor:
        return evidence.predictions.probabilities.mul_(0.5)[:, 0]

    uerm = UERM(torch.tensor([0, 1]), 2, estimator=in_place, warmup_epochs=0)
    feed(uerm, [[9.0, 0.0]] * 2, [0, 1])
    uerm.end_epoch()
    torch.testing.assert_close(uerm.predictions.mean.sum(1), torch.ones(2))


def test_features_of_another_width_are_refused_before_anything_is_counted() -> None:
    uerm = UERM(torch.tensor([0, 1]), 2, estimator="attention", feature_dim=3)
    with pytest.raises(ValueError, match=r"features: expected shape \(N, D\) = \(2, 3\)"):
        feed(uerm, [[9.0, 0.0]] * 2, [0, 1])
    assert not uerm.predictions.total.any()


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


def test_scn_trains_on_what_it_relabels() -> None:
    for policy in ("scn", scn, partial(scn, group="all")):
        assert not UERM(torch.tensor([0]), 2, policy=policy).quarantine
    assert UERM(torch.tensor([0]), 2, policy="scn", quarantine=True).quarantine
    assert UERM(torch.tensor([0]), 2).quarantine


def test_scn_decides_on_the_last_epoch_alone() -> None:
    uerm = UERM(torch.tensor([0]), 2, policy="scn", warmup_epochs=0)
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
        ("estimator: expected one of .* or a callable, got 'size'", {"estimator": "size"}),
        (
            "estimator: expected one of .* or a callable, got \\['margin'\\]",
            {"estimator": ["margin"]},
        ),
        ("dtype: expected float32 or float16, got torch.float64", {"dtype": torch.float64}),
        ("max_fraction: expected a share from 0 to 1, got 2", {"max_fraction": 2}),
        ("class_floor: expected a share from 0 to 1, got -0.1", {"class_floor": -0.1}),
        ("top_k: expected at least 2, got 1", {"top_k": 1}),
        ("policy: expected one of .* or a callable, got 'ema'", {"policy": "ema"}),
        ("policy: expected a name or a callable, got 5", {"policy": 5}),
        ("momentum: expected 0 <= momentum < 1, got 1", {"momentum": 1}),
        ("warmup_epochs: expected a whole number of at least 0, got -1", {"warmup_epochs": -1}),
        ("warmup_epochs: expected a whole number of at least 0, got 0.4", {"warmup_epochs": 0.4}),
        ("feature_dim: expected D of the features, which estimator", {"estimator": "attention"}),
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
        ("ids: expected a tensor, got list", (torch.zeros(2, 4), torch.zeros(2, 2), [0, 1])),
    ],
)  # fmt: skip
def test_wrong_batches_are_named(message: str, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=message):
        UERM(torch.tensor([0, 1]), 2)(*batch)
