"""Figures of the comparison with cleanlab: how well wrong labels are found and repaired."""

import math
from typing import Any, NamedTuple

import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.studies.evidence import Row
from unmuddle.uerm import (
    Distribution,
    Evidence,
    NoiseModel,
    bayes,
    ema_margin,
    fit_noise,
    gather_evidence,
    posterior,
)
from unmuddle.uerm.noise import FLOOR, fit_likelihood
from unmuddle.uerm.policy import Proposals, draw_to_verify, guarded

ANSWERS = (100, 200)  # numbers of verified labels
EAGER, STRICT = 0.5, 0.93  # values of `precision` besides the default
GUARDS = {"max_fraction": 0.5, "class_floor": 0.1}  # the defaults of UERM
SCORES = {
    "self_confidence": {"method": "self_confidence"},
    "normalized_margin": {"method": "normalized_margin"},
    "confidence_weighted_entropy": {"method": "confidence_weighted_entropy"},
    "self_confidence, adjusted": {"method": "self_confidence", "adjust_pred_probs": True},
    "normalized_margin, adjusted": {"method": "normalized_margin", "adjust_pred_probs": True},
}
FILTERS = (
    "prune_by_class", "prune_by_noise_rate", "both", "confident_learning", "predicted_neq_given"
)  # fmt: skip


class Problem(NamedTuple):
    """Noisy labels.

    Attributes:
        given: `(n,)` labels as given.
        truth: `(n,)` labels before noise.
        sources: names of the images.
        classes: names of the classes.
    """

    given: Tensor
    truth: Tensor
    sources: list[str]
    classes: tuple[str, ...]


def ranking(problem: Problem, doubt: Tensor, among: Tensor | None = None) -> float | None:
    """Average precision of `doubt` `(n,)` at finding wrong labels; `None` if there are none."""
    wrong = problem.given != problem.truth
    if among is not None:
        wrong, doubt = wrong[among], doubt[among]
    return float(average_precision_score(wrong, doubt)) if wrong.any() else None


def repair(problem: Problem, labels: Tensor, among: Tensor | None = None) -> Row:
    """Share of right labels after a repair, and precision of the changes `among` some samples."""
    changed = labels != problem.given
    if among is not None:
        changed &= among
    right = labels == problem.truth
    return {
        "after": float(right.double().mean()),
        "precision": float(right[changed].double().mean()) if changed.any() else None,
        "changed": float(changed.double().mean()),
    }


def of_uerm(
    problem: Problem, predictions: Distribution, relabeled: Tensor, features: Tensor, seed: int
) -> Row:
    """Figures of a run with UERM.

    Args:
        problem: noisy labels.
        predictions: UERM's running mean.
        relabeled: `(n,)` labels after the run.
        features: `(n, D)` of the pretrained network before fine-tuning.
        seed: of the labels that are verified.

    Returns:
        Figures of its ranking and relabels, of both after answers, of cleanlab on the same
        predictions, and of every other approach that was tried.
    """
    evidence = gather_evidence(predictions, problem.given, len(problem.classes))
    row: Row = {
        "ranking": ranking(problem, evidence.uncertainty),
        "self_confidence": ranking(problem, 1 - predictions.prob_of(problem.given)),
        "repair": repair(problem, relabeled),
        "eager": repair(problem, bayes(evidence, precision=EAGER).labels),
        "same_predictions": of_cleanlab(problem, predictions.probabilities),
        "model": of_model(problem, predictions),
        "tries": {
            name: {"ranking": ranking(problem, doubt), "repair": repair(problem, labels)}
            for name, (doubt, labels) in tries(problem, predictions, features).items()
        },
    }
    if row["ranking"] is not None:
        for verified in ANSWERS:
            row[f"verified_{verified}"] = verified_at_random(problem, predictions, verified, seed)
        row["verified_top"] = verified_from_the_top(problem, predictions, ANSWERS[-1])
    return row


def of_model(problem: Problem, predictions: Distribution) -> Row:
    """Noise rates that UERM and maximum likelihood estimate, and how much is contradicted."""
    model = fit_noise(predictions, problem.given, len(problem.classes))
    contradicted = predictions.best()[1] != problem.given
    wrong = problem.given != problem.truth
    return {
        "rate": float(model.rate),
        "most_likely_rate": float(most_likely(predictions, problem.given, model).rate),
        "contradicted": float(contradicted.double().mean()),
        "wrong_contradicted": float(contradicted[wrong].double().mean()) if wrong.any() else None,
        "wrong_by_class": {
            name: float(wrong[problem.given == label].double().mean())
            for label, name in enumerate(problem.classes)
            if (problem.given == label).any()
        },
    }


def verified_at_random(problem: Problem, predictions: Distribution, number: int, seed: int) -> Row:
    """Figures after verifying labels in rounds of 100, as `unmuddle audit --draw` draws them."""
    asked = torch.zeros(len(problem.given), dtype=torch.bool)
    while (missing := number - int(asked.sum())) > 0:
        evidence = _with_answers(problem, predictions, asked)._replace(current=problem.given)
        drawn = draw_to_verify(
            evidence, ~asked, min(missing, 100), seed=1000 * seed + int(asked.sum())
        )
        asked |= drawn.labels != problem.given
    return _after_answers(problem, predictions, asked)


def verified_from_the_top(problem: Problem, predictions: Distribution, number: int) -> Row:
    """Figures after verifying the most suspicious labels."""
    evidence = gather_evidence(predictions, problem.given, len(problem.classes))
    asked = torch.zeros(len(problem.given), dtype=torch.bool)
    asked[evidence.uncertainty.argsort(descending=True)[:number]] = True
    return _after_answers(problem, predictions, asked)


def _with_answers(problem: Problem, predictions: Distribution, asked: Tensor) -> Evidence:
    current = torch.where(asked, problem.truth, problem.given)
    return gather_evidence(
        predictions, problem.given, len(problem.classes), current=current, verified=asked
    )


def _after_answers(problem: Problem, predictions: Distribution, asked: Tensor) -> Row:
    """Figures of the labels that were not verified; the share of right labels is of all."""
    before = gather_evidence(predictions, problem.given, len(problem.classes))
    evidence = _with_answers(problem, predictions, asked)

    def repaired(proposals: Proposals) -> Row:
        allowed = guarded(proposals, evidence._replace(current=problem.given), **GUARDS).labels
        return repair(problem, torch.where(asked, problem.truth, allowed), ~asked)

    return {
        "asked": int(asked.sum()),
        "before": ranking(problem, before.uncertainty, ~asked),
        "ranking": ranking(problem, 1 - evidence.posterior.prob_of(problem.given), ~asked),
        "repair": repaired(bayes(evidence)),
        "eager": repaired(bayes(evidence, precision=EAGER)),
        "strict": repaired(bayes(evidence, precision=STRICT)),
    }


def of_cleanlab(problem: Problem, probabilities: Tensor) -> Row:
    """Figures of each score and filter of cleanlab; found labels become the predicted class."""
    p, given = probabilities.double().numpy(), problem.given.numpy()
    p = p / p.sum(1, keepdims=True)
    scores = {
        name: ranking(problem, 1 - torch.from_numpy(get_label_quality_scores(given, p, **options)))
        for name, options in SCORES.items()
    }
    repairs = {}
    for name in FILTERS:
        issue = torch.from_numpy(find_label_issues(given, p, filter_by=name, n_jobs=1))
        labels = torch.where(issue, probabilities.argmax(1), problem.given)
        repairs[name] = repair(problem, labels)
    return {"rankings": scores, "repairs": repairs}


def tries(
    problem: Problem, predictions: Distribution, features: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Doubt about each label and labels after repair, for every approach on the same evidence."""
    given, classes = problem.given, len(problem.classes)
    model = fit_noise(predictions, given, classes)
    even = (1 - torch.eye(classes)) / (classes - 1)
    contradicted = (predictions.best()[1] != given).double().mean()
    probed = predictions.probabilities * probe(features, given, classes).sqrt()
    probed = Distribution(probed / probed.sum(1, keepdim=True))

    def judged(model: NoiseModel, symmetry: float) -> Distribution:
        return posterior(predictions, given, fit_likelihood(predictions, given, model, symmetry))

    likely = {
        "default": posterior(predictions, given, model),
        "symmetric noise": judged(model._replace(confusion=even), 1),
        "rate: maximum likelihood": posterior(
            predictions, given, most_likely(predictions, given, model)
        ),
        "rate: all contradictions": judged(model._replace(rate=contradicted), 0),
        "class prior": with_class_prior(posterior(predictions, given, model), predictions, given),
        "linear probe": posterior(probed, given, fit_noise(probed, given, classes)),
    }
    evidence = gather_evidence(predictions, given, classes)
    found = {
        name: (1 - p.prob_of(given), bayes(evidence._replace(posterior=p)).labels)
        for name, p in likely.items()
    }
    for threshold in (0.2, 0.4):
        labels = ema_margin(evidence, threshold=threshold).labels
        found[f"margin > {threshold}"] = -predictions.margin(given), labels
    return found


def most_likely(predictions: Distribution, given: Tensor, model: NoiseModel) -> NoiseModel:
    """Replace rate and sharpness by those that maximise the likelihood, with UERM's priors."""
    log_p = predictions.probabilities.double().clamp(min=FLOOR).log()
    one_hot = torch.eye(log_p.shape[1], dtype=torch.float64)[given]
    wrong = model.confusion.double().T[given]

    def loss(parameters: Any) -> float:
        rate, sharpness = 1 / (1 + math.exp(-parameters[0])), math.exp(parameters[1])
        of_label = (1 - rate) * one_hot + rate * wrong
        q = (sharpness * log_p + model.bias).softmax(1)
        likelihood = (q * of_label).sum(1).log().sum()
        prior = math.log(rate) + 9 * math.log(1 - rate) - 2 * (parameters[1] - 0.7) ** 2
        return -float(likelihood + prior) / len(given)

    found = torch.tensor(minimize(loss, [-2.2, 0.7], method="Nelder-Mead").x)
    return model._replace(rate=found[0].sigmoid(), sharpness=found[1].exp())


def with_class_prior(p: Distribution, predictions: Distribution, given: Tensor) -> Distribution:
    """Weigh each class by the square root of the odds that its labels are not contradicted."""
    classes = p.probabilities.shape[1]
    contradicts = predictions.best()[1] != given
    wrong = torch.bincount(given[contradicts], minlength=classes)
    right = torch.bincount(given[~contradicts], minlength=classes)
    weighted = p.probabilities * ((right + 1) / (wrong + 1)).sqrt()
    return Distribution(weighted / weighted.sum(1, keepdim=True))


def probe(features: Tensor, given: Tensor, classes: int) -> Tensor:
    """Out-of-sample probabilities of a logistic regression on frozen features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
    found = cross_val_predict(model, features.numpy(), given.numpy(), method="predict_proba")
    p = torch.full((len(given), classes), FLOOR)
    p[:, given.unique()] = torch.from_numpy(found).float()
    return p.clamp(min=FLOOR)
