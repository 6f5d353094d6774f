"""Predict a split and score it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix

from unmuddle.recipes.images import standardize
from unmuddle.recipes.model import Classifier
from unmuddle.uerm import UERM


class Score(NamedTuple):
    """How well a split was classified.

    Attributes:
        accuracy: share of samples classified right.
        mean_class_accuracy: mean over the classes that occur of the share classified right.
        confusion: `(K, K)` counts, true class by predicted class.
    """

    accuracy: float
    mean_class_accuracy: float
    confusion: Tensor


@torch.no_grad()
def observe(uerm: UERM, model: Classifier, loader: DataLoader[Any], mirror: bool) -> None:
    """Show UERM what the model, in eval mode, predicts of every sample, and of its mirror image."""
    model.eval()
    for images, _, ids in loader:
        images = standardize(images)
        for view in (images, images.flip(3)) if mirror else (images,):
            logits, features, _ = model(view)
            uerm.observe(features, logits, ids)


@torch.no_grad()
def predict(model: Classifier, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Probabilities `(N, K)` by the model in eval mode, where it is left, and the labels `(N,)`."""
    model.eval()
    predicted: list[Tensor] = []
    labels: list[Tensor] = []
    for images, batch_labels, _ in loader:
        predicted.append(model(standardize(images)).logits.float().softmax(1).cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(predicted), torch.cat(labels)


def evaluate(model: Classifier, loader: DataLoader[Any], num_classes: int) -> Score:
    """Score the model."""
    probabilities, labels = predict(model, loader)
    confusion = multiclass_confusion_matrix(probabilities.argmax(1), labels, num_classes)
    right, of_class = confusion.diagonal().double(), confusion.sum(1).double()
    occurs = of_class > 0
    return Score(
        accuracy=float(right.sum() / of_class.sum()),
        mean_class_accuracy=float((right[occurs] / of_class[occurs]).mean()),
        confusion=confusion,
    )
