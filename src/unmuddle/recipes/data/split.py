"""Split off a validation part."""

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from unmuddle.recipes.data.types import LabeledImages
from unmuddle.recipes.errors import UsageError


def split_off_validation(train: LabeledImages, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """Nine tenths to train on and one to select on, every class in proportion."""
    kept, off = stratified_split(train.labels, 0.1, seed=seed)
    return train.subset(kept), train.subset(off)


def stratified_split(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of the larger and the split-off part, every class in proportion."""
    try:
        kept, off = train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=fraction,
            random_state=seed,
            stratify=labels.numpy(),
        )
    except ValueError as error:
        raise UsageError(f"cannot split off {fraction:.0%} by class: {error}") from error
    return torch.from_numpy(kept).sort().values, torch.from_numpy(off).sort().values
