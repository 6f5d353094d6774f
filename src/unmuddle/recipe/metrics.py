"""Classification metrics with confidence intervals."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000
BINS = 15  # of the confidence


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix `(K, K)`. Rows are true classes, columns predicted classes."""
    pairs = labels * num_classes + predicted
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(confusion: Tensor) -> float:
    """Return the fraction of samples that are classified correctly."""
    return float(confusion.diagonal().sum().double() / confusion.sum())


def mean_class_accuracy(confusion: Tensor) -> float:
    """Return the accuracy of each class, averaged over the classes that occur."""
    right, samples = confusion.diagonal().double(), confusion.sum(1)
    return float((right / samples)[samples > 0].mean())


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error of predictions `(N, K)` for labels `(N,)`.

    `sum_b |sum_{i in b} (correct_i - confidence_i)| / N` over 15 bins `b` of the confidence.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599.
    """
    confidence, predicted = probabilities.double().max(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64, device=labels.device)
    gaps.index_add_(0, bins, (predicted == labels).double() - confidence)
    return float(gaps.abs().sum() / len(labels))


class Interval(NamedTuple):
    """Metric with its 95 % confidence interval, from a percentile bootstrap over the samples."""

    value: float
    low: float
    high: float


class ClassMetrics(NamedTuple):
    """Metrics of one class. Undefined metrics are NaN, for example if it is never predicted."""

    samples: int
    precision: float
    recall: float
    f1: float


class Metrics(NamedTuple):
    """Metrics of N samples in K classes.

    Attributes:
        samples: number of samples N.
        accuracy: fraction of samples that are classified correctly.
        mean_class_accuracy: accuracy of each class, averaged over the classes that occur.
        calibration_error: mean of |confidence - accuracy| over 15 bins of the confidence.
        classes: metrics of each of the K classes.
        confusion: `(K, K)` counts. Rows are true classes, and columns are predicted classes.
    """

    samples: int
    accuracy: Interval
    mean_class_accuracy: Interval
    calibration_error: Interval
    classes: tuple[ClassMetrics, ...]
    confusion: Tensor


def measure(probabilities: Tensor, labels: Tensor, *, seed: int = 0) -> Metrics:
    """Compute all metrics of predictions `(N, K)` for labels `(N,)`, on the CPU.

    Args:
        probabilities: predicted probabilities of the classes.
        labels: true classes.
        seed: seed of the bootstrap.
    """
    from scipy.stats import bootstrap  # slow to import

    count, predicted = probabilities.shape[1], probabilities.argmax(1)

    def interval(figure: Callable[[Tensor], float]) -> Interval:
        """Return a metric of all samples with its bootstrap interval."""
        everything = figure(torch.arange(len(labels)))
        if len(labels) < 2:
            return Interval(everything, math.nan, math.nan)

        def of_array(chosen: np.ndarray) -> float:
            return figure(torch.from_numpy(chosen))

        found = bootstrap(
            (np.arange(len(labels)),),
            of_array,
            n_resamples=RESAMPLES,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return Interval(everything, float(found.low), float(found.high))

    def confusion(chosen: Tensor) -> Tensor:
        return confusion_matrix(labels[chosen], predicted[chosen], count)

    counts = confusion_matrix(labels, predicted, count)
    return Metrics(
        len(labels),
        interval(lambda chosen: accuracy(confusion(chosen))),
        interval(lambda chosen: mean_class_accuracy(confusion(chosen))),
        interval(lambda chosen: calibration_error(probabilities[chosen], labels[chosen])),
        tuple(_of_class(counts, k) for k in range(count)),
        counts,
    )


def as_json(metrics: Metrics, classes: Sequence[str]) -> dict[str, Any]:
    """Convert metrics to JSON types, with classes by name and undefined values as null."""

    def plain(figures: Interval | ClassMetrics) -> dict[str, float | None]:
        return {
            name: None if math.isnan(value) else value for name, value in figures._asdict().items()
        }

    return {
        "samples": metrics.samples,
        "accuracy": plain(metrics.accuracy),
        "mean_class_accuracy": plain(metrics.mean_class_accuracy),
        "calibration_error": plain(metrics.calibration_error),
        "classes": {
            name: plain(found) for name, found in zip(classes, metrics.classes, strict=True)
        },
        "confusion": metrics.confusion.tolist(),
    }


def _of_class(confusion: Tensor, k: int) -> ClassMetrics:
    counts = confusion.double()
    hits, samples, predicted = counts[k, k], counts[k].sum(), counts[:, k].sum()
    return ClassMetrics(
        int(samples),
        float(hits / predicted),
        float(hits / samples),
        float(2 * hits / (samples + predicted)),
    )
