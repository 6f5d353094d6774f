"""Classification metrics with confidence intervals."""

from collections.abc import Sequence
from typing import Any

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


def measure(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Return all metrics of predictions `(N, K)` for labels `(N,)`, on the CPU, as JSON types.

    Accuracy, mean class accuracy and calibration error have a 95 % confidence interval, from a
    percentile bootstrap over the samples. Precision, recall and F1 of a class are null where they
    are undefined, for example the precision of a class that is never predicted.

    Args:
        probabilities: predicted probabilities of the classes.
        labels: true classes.
        classes: names of the K classes.
        seed: seed of the bootstrap.
    """
    from sklearn.metrics import precision_recall_fscore_support  # slow to import

    size, predicted = len(labels), probabilities.argmax(1)

    def figures(ids: Tensor) -> dict[str, float]:
        counts = confusion_matrix(labels[ids], predicted[ids], len(classes))
        return {
            "accuracy": accuracy(counts),
            "mean_class_accuracy": mean_class_accuracy(counts),
            "calibration_error": calibration_error(probabilities[ids], labels[ids]),
        }

    random = torch.Generator().manual_seed(seed)
    drawn = [figures(torch.randint(size, (size,), generator=random)) for _ in range(RESAMPLES)]
    found: dict[str, Any] = {"samples": size}
    for name, value in figures(torch.arange(size)).items():
        low, high = np.quantile([resample[name] for resample in drawn], (0.025, 0.975)).tolist()
        found[name] = {"value": value, "low": low, "high": high}
    of_classes = precision_recall_fscore_support(
        labels,
        predicted,
        labels=range(len(classes)),
        zero_division=np.nan,  # pyright: ignore
    )
    found["classes"] = {
        name: {"samples": int(samples), "precision": plain(p), "recall": plain(r), "f1": plain(f)}
        for name, (p, r, f, samples) in zip(classes, np.array(of_classes).T.tolist(), strict=True)
    }
    return found | {"confusion": confusion_matrix(labels, predicted, len(classes)).tolist()}


def plain(value: float | Tensor) -> Any:
    """Convert a value to JSON types: a tensor to lists, NaN to null."""
    if isinstance(value, Tensor):
        return value.tolist()
    return None if value != value else value
