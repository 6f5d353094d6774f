"""Inject label noise that is known, so that relabeling can be scored."""

import re

import torch
from torch import Tensor

from unmuddle.recipes.errors import UsageError


def check_noise(spec: str) -> float:
    """The probability P of `symmetric:P`, 0 for `none`; anything else is a UsageError."""
    if spec == "none":
        return 0.0
    found = re.fullmatch(r"symmetric:(\d*\.?\d+)", spec)
    if not found or not 0 <= float(found[1]) <= 1:
        raise UsageError(
            f"--noise {spec}: expected none or symmetric:P with 0 <= P <= 1, e.g. symmetric:0.2"
        )
    return float(found[1])


def symmetric_noise(labels: Tensor, num_classes: int, probability: float, seed: int) -> Tensor:
    """Labels of which each is, with this probability, replaced by another class, all alike."""
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(len(labels), generator=generator) < probability
    step = torch.randint(1, num_classes, (len(labels),), generator=generator)
    return torch.where(flip, (labels + step) % num_classes, labels)
