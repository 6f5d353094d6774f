"""Prediction of a split, and scores of the predictions."""

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from unmuddle.recipe.metrics import accuracy, confusion_matrix, mean_class_accuracy
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.processes import reduced
from unmuddle.uerm import UERM


class Score(NamedTuple):
    """Metrics of one split.

    Attributes:
        accuracy: fraction of samples that are classified correctly.
        mean_class_accuracy: accuracy of each class, averaged over the classes that occur.
        confusion: `(K, K)` counts. Rows are true classes, and columns are predicted classes.
    """

    accuracy: float
    mean_class_accuracy: float
    confusion: Tensor


@torch.no_grad()
def observe(uerm: UERM, model: Classifier, loader: DataLoader[Any], mirror: bool) -> None:
    """Let UERM observe the model's predictions for every sample.

    With `mirror`, UERM also observes the predictions for the mirror images. The model is set to
    eval mode.
    """
    model.eval()
    for images, _, ids in loader:
        images = model.standardize(images)
        for view in (images, images.flip(3)) if mirror else (images,):
            logits, features, _ = model(view)
            uerm.observe(features, logits, ids)


@torch.no_grad()
def predict_batches(model: Classifier, loader: DataLoader[Any]) -> Generator[tuple[Tensor, Tensor]]:
    """Yield the probabilities `(n, K)` and labels `(n,)` of each batch.

    The model is set to eval mode and stays in it.
    """
    model.eval()
    for images, labels, _ in loader:
        yield model(model.standardize(images)).logits.float().softmax(1), labels


def predict(model: Classifier, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Return the probabilities `(N, K)` and labels `(N,)` of all samples, on the CPU."""
    probabilities, labels = zip(*predict_batches(model, loader), strict=True)
    return torch.cat(probabilities).cpu(), torch.cat(labels).cpu()


def evaluate(
    model: Classifier, loader: DataLoader[Any], num_classes: int, accelerator: Accelerator
) -> Score:
    """Score the model on the samples of all processes."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=accelerator.device)
    with accelerator.autocast():
        for probabilities, labels in predict_batches(model, loader):
            confusion += confusion_matrix(labels, probabilities.argmax(1), num_classes)
    confusion = reduced(confusion, accelerator, "sum").cpu()
    return Score(accuracy(confusion), mean_class_accuracy(confusion), confusion)
