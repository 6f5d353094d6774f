"""The noise model: what it recovers where the truth is known, and that its word can be trusted."""

import pytest
import torch
from torch import Tensor

from unmuddle.uerm import Distribution, bayes, fit_noise, gather_evidence, posterior
from unmuddle.uerm.noise import _unevenness
from unmuddle.uerm.uncertainty import mislabeled

N, K = 6000, 6


def problem(
    rate: float, seed: int = 0, n: int = N, k: int = K, clear: float = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """What can be known of each sample `(n, k)`, its class, and its label, a share of them wrong."""
    g = torch.Generator().manual_seed(seed)
    q = (clear * torch.randn(n, k, generator=g)).softmax(1)
    truth = torch.multinomial(q, 1, generator=g)[:, 0]
    wrong = torch.rand(n, generator=g) < rate
    step = torch.randint(1, k, (n,), generator=g)
    return q, truth, torch.where(wrong, (truth + step) % k, truth)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_rate_and_sharpness_are_recovered(rate: float, temperature: float) -> None:
    q, truth, y = problem(rate)
    found = fit_noise(Distribution((q.log() / temperature).softmax(1)), y, K)
    assert float(found.rate) == pytest.approx(float((y != truth).float().mean()), abs=0.02)
    assert float(found.sharpness) == pytest.approx(temperature, rel=0.15)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_posterior_is_right_as_often_as_it_says(rate: float) -> None:
    q, truth, y = problem(rate)
    p = Distribution((q.log() / 2).softmax(1))
    known = posterior(p, y, fit_noise(p, y, K)).probabilities
    torch.testing.assert_close(known.sum(1), torch.ones(N))
    said, best = known.max(1)
    for low, high in ((0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        among = (said >= low) & (said < high)
        right = (best == truth)[among].float()
        error = (right.mean() * (1 - right.mean()) / among.sum()).sqrt()
        assert abs(right.mean() - said[among].mean()) < 3 * error + 0.01


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("precision", [0.8, 0.9])
def test_new_labels_are_right_as_often_as_asked_for(rate: float, precision: float) -> None:
    q, truth, y = problem(rate)
    evidence = gather_evidence(Distribution((q.log() / 2).softmax(1)), y, K)
    found = bayes(evidence, precision=precision)
    changed = found.labels != y
    assert changed.sum() > 0.2 * rate * N
    right = (found.labels == truth)[changed].float()
    error = (right.mean() * (1 - right.mean()) / changed.sum()).sqrt()
    assert right.mean() > precision - 3 * error
    assert (found.margin[changed] >= found.threshold).all()


def test_the_precision_sets_the_threshold() -> None:
    q, _, y = problem(0.3)
    evidence = gather_evidence(Distribution(q), y, K)
    assert float(bayes(evidence).threshold) == float(bayes(evidence, precision=0.9).threshold)
    changed = bayes(evidence, precision=0.5).labels != y
    assert torch.equal(changed, evidence.posterior.rival(y)[0] > 0.5)
    thresholds = [float(bayes(evidence, precision=p).threshold) for p in (0.5, 0.9, 0.95)]
    assert thresholds == sorted(set(thresholds))
    assert (bayes(evidence, precision=1.0).labels == y).all()


def test_hard_samples_pass_for_wrong_labels_up_to_a_tenth() -> None:
    # A third of these labels is not the most likely class of its sample.
    for rate in (0.0, 0.2):
        q, truth, y = problem(rate, clear=3)
        found = float(fit_noise(Distribution(q), y, K).rate)
        assert 0.02 < found - float((y != truth).float().mean()) < 0.1
    q, truth, y = problem(0.0, clear=3)
    kept = bayes(gather_evidence(Distribution(q), y, K)).labels == truth
    assert kept.float().mean() > 0.99


def test_noise_of_chance_goes_evenly_to_all_classes() -> None:
    q, _, y = problem(0.2)
    model = fit_noise(Distribution(q), y, K)
    torch.testing.assert_close(model.confusion, (1 - torch.eye(K)) / (K - 1))


def test_a_class_that_is_predicted_too_seldom_is_corrected() -> None:
    q, truth, y = problem(0.2)
    shift = torch.tensor([-1.5, 0, 0, 0, 0, 0.5])
    p = Distribution((q.log() / 2 + shift).softmax(1))
    model = fit_noise(p, y, K)
    assert model.bias.argmax() == 0
    assert model.bias.argmin() == 5
    plain = posterior(p, y, model._replace(bias=torch.zeros(K)))
    right = [
        float((found.best()[1] == truth).float().mean())
        for found in (posterior(p, y, model), plain)
    ]
    assert right[0] > right[1] + 0.01


def test_classes_that_are_taken_for_each_other_are_found() -> None:
    g = torch.Generator().manual_seed(0)
    q, truth, _ = problem(0.0, clear=8)
    y = torch.where(torch.rand(N, generator=g) < 0.2, (truth + 1) % K, truth)
    model = fit_noise(Distribution(q), y, K)
    torch.testing.assert_close(model.confusion.sum(1), torch.ones(K))
    assert not model.confusion.diagonal().any()
    assert not model.bias.any(), "confounded with this noise"
    next_one = (torch.arange(K) + 1) % K
    assert (model.confusion[torch.arange(K), next_one] > 0.6).all()
    # What contradicts in another way is more likely a hard sample.
    p = Distribution(torch.full((2, K), 0.02))
    p.probabilities[:, 0] = 0.9
    said = posterior(p, torch.tensor([1, 2]), model).probabilities[:, 0]
    assert said[0] > 0.9 > 0.6 > said[1]


def test_samples_without_a_prediction_do_not_count() -> None:
    q, _, y = problem(0.2)
    seen = fit_noise(Distribution(q), y, K)
    more = fit_noise(Distribution(torch.cat([q, torch.zeros(500, K)])), torch.cat([y, y[:500]]), K)
    for value, expected in zip(more, seen, strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_few_entries_find_what_all_classes_find(kind: str, k: int) -> None:
    classes, n = 30, 3000
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % classes
    step = torch.randint(1, classes, (n,), generator=g) if kind == "symmetric" else 1
    y = torch.where(torch.rand(n, generator=g) < 0.2, (truth + step) % classes, truth)
    p = (torch.randn(n, classes, generator=g) + 7 * torch.eye(classes)[truth]).softmax(1)
    top = p.topk(k)
    found = [
        bayes(gather_evidence(predictions, y, classes)).labels
        for predictions in (Distribution(p), Distribution(top.values, top.indices.short()))
    ]
    assert (found[0] == truth).float().mean() > 0.99
    assert (found[0] == found[1]).float().mean() > 0.99


def test_few_entries_have_the_posterior_of_all_classes_where_they_hold_all() -> None:
    g = torch.Generator().manual_seed(0)
    q, truth, _ = problem(0.0)
    y = torch.where(torch.rand(N, generator=g) < 0.2, (truth + 1) % K, truth)
    whole, top = Distribution(q), q.topk(K)
    model = fit_noise(whole, y, K)
    entries = posterior(Distribution(top.values, top.indices), y, model)
    unsorted = torch.zeros(N, K).scatter(1, entries.classes, entries.probabilities)
    torch.testing.assert_close(unsorted, posterior(whole, y, model).probabilities)


@pytest.mark.parametrize(
    ("kind", "expected"), [("even", 0), ("mixed", 0.5), ("uneven", 1), ("few", 0), ("none", 0)]
)
def test_unevenness_is_the_divergence_above_chance(kind: str, expected: float) -> None:
    g = torch.Generator().manual_seed(0)
    classes = 40
    this, following = torch.arange(classes), (torch.arange(classes) + 1) % classes
    wrong = torch.zeros(classes, classes)
    if kind == "few":  # one contradiction a class goes to one class, whatever the noise
        wrong[this, following] = 1
    elif kind != "none":
        # This share goes to the next class, 0.2 nats in the middle case; the rest to all others.
        share = {"even": 1 / (classes - 1), "mixed": 0.175, "uneven": 0.7}[kind]
        chance = torch.full((classes, classes), (1 - share) / (classes - 2)).fill_diagonal_(0)
        chance[this, following] = share
        for row in range(classes):
            drawn = torch.multinomial(chance[row], 60, replacement=True, generator=g)
            wrong[row] = torch.bincount(drawn, minlength=classes)
    assert float(_unevenness(wrong)) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("predictions: expected Distribution", {"predictions": torch.eye(3)}),
        ("predictions: expected Distribution", {"predictions": Distribution(torch.eye(3).numpy())}),
        (r"expected floats of shape \(n, K\) = \(n, 3\), got torch.float32 \(3, 2\)",
         {"predictions": Distribution(torch.zeros(3, 2))}),
        (r"got torch.float32 \(3,\)", {"predictions": Distribution(torch.zeros(3))}),
        (r"got torch.int64 \(3, 3\)", {"predictions": Distribution(torch.eye(3).long())}),
        (r"expected probabilities, got \[0.0, 2.0, 0.0\] in row 1",
         {"predictions": Distribution(torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]))}),
        ("in row 0", {"predictions": Distribution(torch.full((3, 3), torch.nan))}),
        ("in row 0", {"predictions": Distribution(torch.tensor([[1.5, -1, 0.5]] * 3))}),
        ("original: expected integers from 0 to 2, got 3", {"original": torch.tensor([0, 1, 3])}),
        ("original: expected integers from 0 to 2, got -1", {"original": torch.tensor([0, 1, -1])}),
        (r"original: expected shape \(n,\) = \(3,\), got \(2,\)", {"original": torch.tensor([0, 1])}),
        ("original: expected a vector of integers", {"original": torch.zeros(3)}),
        (r"current: expected shape \(n,\) = \(3,\), got \(1,\)", {"current": torch.tensor([0])}),
        (r"verified: expected booleans of shape \(n,\) = \(3,\), got torch.int64 \(3,\)",
         {"verified": torch.arange(3)}),
    ],
)  # fmt: skip
def test_wrong_evidence_is_named(message: str, options: dict) -> None:
    fine = {"predictions": Distribution(torch.eye(3)), "original": torch.arange(3)}
    assert len(gather_evidence(**fine, num_classes=3).uncertainty) == 3
    with pytest.raises(ValueError, match=message):
        gather_evidence(**(fine | options), num_classes=3)
    uint8 = fine | {"original": torch.arange(3).byte()}
    assert gather_evidence(**uint8, num_classes=3).original.dtype == torch.int64


def test_few_samples_are_relabeled_and_stay_by_the_same_threshold() -> None:
    known = gather_evidence(Distribution(torch.eye(2)), torch.tensor([0, 1]), 2)

    def labels(*rivals: float) -> list[int]:
        p = torch.tensor([[1 - rival, rival] for rival in rivals])
        current = torch.tensor([1, 0])
        return bayes(
            known._replace(
                posterior=Distribution(p), original=torch.zeros(2).long(), current=current
            )
        ).labels.tolist()

    assert labels(0.49, 0.0) == [1, 0], "it stays above 0.4"
    assert labels(0.39, 0.0) == [0, 0]
    assert labels(0.45, 0.95) == [1, 1], "whatever is thought of others"
    for name in ("precision", "hysteresis"):
        for value in (-0.1, 1.5, float("nan")):
            with pytest.raises(ValueError, match=f"{name}: expected a number from 0 to 1"):
                bayes(known, **{name: value})


def test_the_more_noise_the_less_it_takes_to_relabel() -> None:
    contradicted = Distribution(torch.tensor([[0.9, 0.02, 0.02, 0.02, 0.02, 0.02]]))
    said = []
    for rate in (0.05, 0.2, 0.4):
        q, _, y = problem(rate)
        model = fit_noise(Distribution(q), y, K)
        said.append(float(posterior(contradicted, torch.tensor([1]), model).probabilities[0, 0]))
    assert said == sorted(said)
    assert said[0] < 0.5 < said[2]


def test_clean_labels_are_left_alone() -> None:
    q, truth, y = problem(0.0)
    evidence = gather_evidence(Distribution(q), y, K)
    assert (bayes(evidence).labels == truth).float().mean() > 0.995


def test_a_relabeled_sample_stays_until_the_evidence_has_turned() -> None:
    q, _, y = problem(0.2)
    evidence = gather_evidence(Distribution(q), y, K)
    first = bayes(evidence)
    # One of them, with evidence that is a little less than the threshold, and much less.
    sample = int((first.labels != y).nonzero()[0])
    threshold = float(first.threshold)
    model = fit_noise(evidence.predictions, y, K)

    def label_with(confidence: float) -> int:
        """The label of the sample when its posterior for the new label is `confidence`."""
        p, new = q.clone(), int(first.labels[sample])
        low, high = 0.0, 1.0
        for _ in range(40):
            share = (low + high) / 2
            p[sample] = (1 - share) / (K - 1)
            p[sample, new] = share
            said = posterior(Distribution(p), y, model).probabilities[sample, new]
            low, high = (share, high) if said < confidence else (low, share)
        again = gather_evidence(Distribution(p), y, K, current=first.labels)
        return int(bayes(again).labels[sample])

    assert label_with(threshold - 0.05) == first.labels[sample]
    assert label_with(threshold - 0.2) == y[sample]


def test_uncertainty_is_the_probability_that_the_current_label_is_wrong() -> None:
    q, truth, y = problem(0.2)
    evidence = gather_evidence(Distribution(q), y, K)
    wrong = mislabeled(evidence)
    assert float(wrong.mean()) == pytest.approx(float((y != truth).float().mean()), abs=0.02)
    better = mislabeled(evidence._replace(current=bayes(evidence).labels))
    assert better.mean() < 0.8 * wrong.mean()


def test_the_largest_entries_are_enough() -> None:
    q, truth, y = problem(0.2, k=40, clear=8)
    top = q.topk(20)
    short = Distribution(top.values.half(), top.indices.short())
    found = fit_noise(short, y, 40)
    assert float(found.rate) == pytest.approx(float((y != truth).float().mean()), abs=0.02)
    known = posterior(short, y, found)
    assert torch.equal(known.classes[:, 0], short.classes[:, 0])
    torch.testing.assert_close(known.probabilities.sum(1), torch.ones(N))


def test_a_label_beyond_the_largest_entries_is_unlikely_and_not_impossible() -> None:
    q, _, y = problem(0.0, k=200, clear=3)
    top = (q.log() / 4).softmax(1).topk(20)  # hard samples: much is left to the other classes
    short = Distribution(top.values, top.indices)
    beyond = ~(top.indices == y[:, None]).any(1)
    assert beyond.sum() > 300
    right = posterior(short, y, fit_noise(short, y, 200)).prob_of(y)
    assert (right[beyond] > 1e-3).all()


@pytest.mark.parametrize("k", [2, 4])
def test_a_large_set_with_its_classes_in_turn_is_seen_whole(k: int) -> None:
    n = 8 * 16_384
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % k
    y = torch.where(torch.rand(n, generator=g) < 0.2, (truth + 1) % k, truth)
    p = (2 * torch.eye(k)[truth] + torch.randn(n, k, generator=g)).softmax(1)
    model = fit_noise(Distribution(p), y, k)
    assert float(model.rate) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_samples_that_are_alike_are_relabeled_only_if_all_are_sure_enough(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q = problem(0.0, seed, n=20)[0].repeat(300, 1)
    truth = torch.multinomial(q, 1, generator=g)[:, 0]
    other = (truth + torch.randint(1, K, (N,), generator=g)) % K
    y = torch.where(torch.rand(N, generator=g) < 0.2, other, truth)
    found = bayes(gather_evidence(Distribution(q), y, K), precision=0.9)
    changed = found.labels != y
    assert changed.any()
    assert found.margin[changed].mean() >= 0.9


def test_a_fit_in_inference_mode() -> None:
    q, _, y = problem(0.2, n=500)
    expected = fit_noise(Distribution(q), y, K)
    with torch.inference_mode():
        found = fit_noise(Distribution(q.clone()), y.clone(), K)
    assert torch.equal(found.rate, expected.rate)


def test_noise_that_goes_to_one_class_is_found_where_predictions_know_better() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(K, (N,), generator=g)
    y = torch.where(torch.rand(N, generator=g) < 0.2, (truth + 1) % K, truth)
    p = (4 * torch.eye(K)[truth] + torch.randn(N, K, generator=g)).softmax(1)
    assert float(fit_noise(Distribution(p), y, K).rate) == pytest.approx(0.2, abs=0.03)
    found = bayes(gather_evidence(Distribution(p), y, K)).labels
    assert (found == truth).float().mean() > 0.98


def test_no_samples_at_all() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    evidence = gather_evidence(Distribution(torch.zeros(0, 3)), nothing, 3)
    assert len(bayes(evidence).labels) == 0


def test_one_class_has_no_noise_to_fit() -> None:
    with pytest.raises(ValueError, match="num_classes: expected at least 2, got 1"):
        fit_noise(Distribution(torch.ones(3, 1)), torch.zeros(3, dtype=torch.int64), 1)


def test_the_posterior_has_a_gradient() -> None:
    p = torch.rand(5, 3, dtype=torch.float64).softmax(1).requires_grad_()
    model = fit_noise(Distribution(p.detach()), torch.tensor([0, 1, 2, 0, 1]), 3)
    posterior(Distribution(p), torch.tensor([0, 1, 2, 0, 1]), model).probabilities[
        :, 0
    ].sum().backward()
    assert p.grad.isfinite().all()
    assert p.grad.any()
