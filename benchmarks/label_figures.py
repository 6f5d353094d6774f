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
from torch import Tensor

from evidence import Row
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
from unmuddle.uerm.policy import draw_to_verify

ANSWERS, STRICT = (100, 200), 0.95
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
    """Labels as given and the true ones `(n,)`, and the names of their images."""

    given: Tensor
    truth: Tensor
    sources: list[str]
    classes: tuple[str, ...]


def ranking(truth: Problem, doubt: Tensor, among: Tensor | None = None) -> float | None:
    """Average precision of the doubt about each label, for finding the wrong ones."""
    wrong = truth.given != truth.truth
    if among is not None:
        wrong, doubt = wrong[among], doubt[among]
    return float(average_precision_score(wrong, doubt)) if wrong.any() else None


def repair(truth: Problem, labels: Tensor, among: Tensor | None = None) -> Row:
    """Share of right labels after a repair, and of right ones among the changes."""
    changed = labels != truth.given
    if among is not None:
        changed &= among
    right = labels == truth.truth
    return {
        "after": float(right.double().mean()),
        "precision": float(right[changed].double().mean()) if changed.any() else None,
        "changed": float(changed.double().mean()),
    }


def of_uerm(truth: Problem, predictions: Distribution, relabeled: Tensor, features: Tensor) -> Row:
    """Figures of a run with UERM.

    Args:
        truth: labels before and after noise.
        predictions: UERM's running mean.
        relabeled: `(n,)` labels after the run.
        features: `(n, D)` of the pretrained network before fine-tuning.

    Returns:
        Figures of its ranking and relabels, of both after answers, and of what else was tried.
    """
    asked = torch.zeros(len(truth.given), dtype=torch.bool)

    def known() -> Evidence:
        current = torch.where(asked, truth.truth, truth.given)
        return gather_evidence(
            predictions, truth.given, len(truth.classes), current=current, verified=asked
        )

    found = known()
    row: Row = {
        "ranking": ranking(truth, found.uncertainty),
        "self_confidence": ranking(truth, 1 - predictions.prob_of(truth.given)),
        "repair": repair(truth, relabeled),
        "tries": {
            name: {"ranking": ranking(truth, doubt), "repair": repair(truth, labels)}
            for name, (doubt, labels) in tries(truth, predictions, features).items()
        },
    }
    for answers in ANSWERS if row["ranking"] is not None else ():
        more = answers - int(asked.sum())
        drawn = draw_to_verify(found, ~asked, more)
        asked |= drawn.labels != found.current
        found = known()
        doubt = 1 - found.posterior.prob_of(truth.given)
        row[f"answers_{answers}"] = {
            "ranking": ranking(truth, doubt, ~asked),
            "repair": repair(truth, _answered(truth, asked, bayes(found).labels), ~asked),
            "strict": repair(
                truth, _answered(truth, asked, bayes(found, precision=STRICT).labels), ~asked
            ),
        }
    return row


def _answered(truth: Problem, asked: Tensor, labels: Tensor) -> Tensor:
    return torch.where(asked, truth.truth, labels)


def of_cleanlab(truth: Problem, probabilities: Tensor) -> Row:
    """By each of cleanlab's scores and filters; a label that is found becomes the predicted one."""
    p, given = probabilities.double().numpy(), truth.given.numpy()
    p = p / p.sum(1, keepdims=True)
    scores = {
        name: ranking(truth, 1 - torch.from_numpy(get_label_quality_scores(given, p, **options)))
        for name, options in SCORES.items()
    }
    repairs = {}
    for name in FILTERS:
        issue = torch.from_numpy(find_label_issues(given, p, filter_by=name, n_jobs=1))
        labels = torch.where(issue, probabilities.argmax(1), truth.given)
        repairs[name] = repair(truth, labels)
    return {"rankings": scores, "repairs": repairs}


def tries(
    truth: Problem, predictions: Distribution, features: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Doubt about each label, and labels after repair, by each approach on the same evidence."""
    given, classes = truth.given, len(truth.classes)
    model = fit_noise(predictions, given, classes)
    contradicted = (predictions.best()[1] != given).double().mean()
    rate, sharpness = most_likely(predictions, given, model)
    probed = predictions.probabilities * probe(features, given, classes).sqrt()
    probed = Distribution(probed / probed.sum(1, keepdim=True))
    likely = {
        "default": posterior(predictions, given, model),
        "symmetric noise": posterior(
            predictions, given, model._replace(confusion=uniform(classes))
        ),
        "rate: maximum likelihood": posterior(
            predictions, given, model._replace(rate=rate, sharpness=sharpness)
        ),
        "rate: all contradictions": posterior(
            predictions, given, model._replace(rate=contradicted)
        ),
        "class prior": with_class_prior(posterior(predictions, given, model), predictions, given),
        "linear probe": posterior(probed, given, fit_noise(probed, given, classes)),
    }
    found = {}
    for name, p in likely.items():
        probability, rival = p.rival(given)
        doubt = 1 - p.prob_of(given)
        found[name] = doubt, torch.where(probability > 0.5, rival, given)
    evidence = gather_evidence(predictions, given, classes)
    for threshold in (0.2, 0.4):
        labels = ema_margin(evidence, threshold=threshold).labels
        found[f"margin > {threshold}"] = -predictions.margin(given), labels
    return found


def uniform(classes: int) -> Tensor:
    """Confusion matrix of symmetric noise."""
    return (1 - torch.eye(classes, dtype=torch.float64)) / (classes - 1)


def most_likely(
    predictions: Distribution, given: Tensor, model: NoiseModel
) -> tuple[Tensor, Tensor]:
    """Rate and sharpness that maximise the likelihood of the labels, with UERM's priors."""
    log_p = predictions.probabilities.double().clamp(min=1e-6).log()
    one_hot = torch.eye(log_p.shape[1], dtype=torch.float64)[given]
    wrong = model.confusion.T[given]

    def loss(parameters: Any) -> float:
        rate, sharpness = 1 / (1 + math.exp(-parameters[0])), math.exp(parameters[1])
        of_label = (1 - rate) * one_hot + rate * wrong
        likelihood = ((sharpness * log_p).softmax(1) * of_label).sum(1).log().sum()
        prior = math.log(rate) + 9 * math.log(1 - rate) - 2 * (parameters[1] - 0.7) ** 2
        return -float(likelihood + prior) / len(given)

    found = minimize(loss, [-2.2, 0.7], method="Nelder-Mead").x
    return torch.tensor(found[0]).sigmoid(), torch.tensor(found[1]).exp()


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
    scaled = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(C=0.003, max_iter=300)
    found = cross_val_predict(model, scaled.numpy(), given.numpy(), method="predict_proba")
    p = torch.full((len(given), classes), 1e-6)
    p[:, given.unique()] = torch.from_numpy(found).float()
    return p.clamp(min=1e-6)
