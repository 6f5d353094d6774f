"""Split off a validation or test split."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unmuddle.recipe.data.types import LabeledImages
from unmuddle.recipe.errors import UsageError


def split_off(
    data: LabeledImages, seed: int, classes: Sequence[str], purpose: str = "validation"
) -> tuple[LabeledImages, LabeledImages]:
    """Split into 90 % for training and 10 % for another purpose, stratified by class.

    Raises:
        UsageError: there are too few images.
    """
    counts = data.labels.bincount(minlength=len(classes)).tolist()
    alone = [name for name, count in zip(classes, counts, strict=True) if count == 1]
    needed = 10 * (sum(count > 0 for count in counts) - 1) + 1
    if alone or len(data) < needed:
        raise UsageError(
            f"cannot split 10 % of {len(data)} images off for {purpose}: expected at "
            f"least {needed} images, and 2 of each class"
            + (f"; {', '.join(alone)} has 1" if alone else "")
        )
    kept, off = stratified_split(data.labels, 0.1, seed=seed)
    return data.subset(kept), data.subset(off)


def stratified_split(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the sorted indices of the larger and the split-off part, stratified by class."""
    from sklearn.model_selection import train_test_split  # slow to import

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
