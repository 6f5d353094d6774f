"""Split off a validation or test split."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unmuddle.recipe.data.types import LabeledImages
from unmuddle.recipe.errors import UsageError, refusing


def split_off(
    data: LabeledImages, seed: int, classes: Sequence[str]
) -> tuple[LabeledImages, LabeledImages]:
    """Split into 90 % for training and 10 % for another purpose, stratified by class.

    Raises:
        UsageError: there are too few images.
    """
    counts = data.labels.bincount(minlength=len(classes)).tolist()
    if alone := [name for name, count in zip(classes, counts, strict=True) if count == 1]:
        raise UsageError(f"cannot split off 10 %: only one image is of class {alone[0]}")
    kept, off = stratified_split(data.labels, 0.1, seed=seed)
    return data.subset(kept), data.subset(off)


def stratified_split(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the sorted indices of the larger and the split-off part, stratified by class."""
    from sklearn.model_selection import train_test_split  # slow to import

    with refusing(f"cannot split off {fraction:.0%} by class"):
        kept, off = train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=fraction,
            random_state=seed,
            stratify=labels.numpy(),
        )
    return torch.from_numpy(kept).sort().values, torch.from_numpy(off).sort().values
