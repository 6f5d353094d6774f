"""Predict a split and score it."""

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix

from unmuddle.recipe.model import Classifier
from unmuddle.recipe.processes import reduced
from unmuddle.uerm import UERM


class Score(NamedTuple):
    """Figures of one split.

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
        images = model.standardize(images)
        for view in (images, images.flip(3)) if mirror else (images,):
            logits, features, _ = model(view)
            uerm.observe(features, logits, ids)


@torch.no_grad()
def predict_batches(model: Classifier, loader: DataLoader[Any]) -> Generator[tuple[Tensor, Tensor]]:
    """Probabilities `(n, K)` by the model in eval mode, where it is left, and labels `(n,)`."""
    model.eval()
    for images, labels, _ in loader:
        yield model(model.standardize(images)).logits.float().softmax(1), labels


def predict(model: Classifier, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Probabilities `(N, K)` and labels `(N,)` of all samples, on the CPU."""
    probabilities, labels = zip(*predict_batches(model, loader), strict=True)
    return torch.cat(probabilities).cpu(), torch.cat(labels).cpu()


def evaluate(
    model: Classifier, loader: DataLoader[Any], num_classes: int, accelerator: Accelerator
) -> Score:
    """Score the model on what all processes' loaders give."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=accelerator.device)
    with accelerator.autocast():
        for probabilities, labels in predict_batches(model, loader):
            confusion += multiclass_confusion_matrix(probabilities.argmax(1), labels, num_classes)
    confusion = reduced(confusion, accelerator, "sum").cpu()
    right, of_class = confusion.diagonal().double(), confusion.sum(1).double()
    occurs = of_class > 0
    return Score(
        accuracy=float(right.sum() / of_class.sum()),
        mean_class_accuracy=float((right[occurs] / of_class[occurs]).mean()),
        confusion=confusion,
    )
