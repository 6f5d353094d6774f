"""Data loaders of a split. The order of the samples depends only on the seed and the epoch."""

from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages
from unmuddle.uerm import LedgerDataset


class RngStream(IntEnum):
    """Purpose of random numbers. Each purpose has its own sequence."""

    ORDER = 1
    AUGMENTATION = 2
    NETWORK = 3
    SNAPSHOT = 4


def seed_for(use: RngStream, *numbers: int) -> int:
    """Return a seed determined by the purpose and the numbers."""
    return int(np.random.SeedSequence((use, *numbers)).generate_state(1, np.uint64)[0])


def training_loader(
    data: LabeledImages, config: TrainConfig, classes: int, order: torch.Generator
) -> DataLoader[Any]:
    """Return batches in an order that `order` determines. Seed it before each epoch.

    With `sampler="balanced"`, all classes are drawn equally often.
    """
    sampler = RandomSampler(data, generator=order)
    if config.sampler == "balanced":  # by the labels as given
        weights = (1 / data.labels.bincount(minlength=classes).double())[data.labels]
        sampler = WeightedRandomSampler(weights.tolist(), len(data), generator=order)
    # A last batch of only a few samples would disturb batch normalisation.
    return _loader(data, config, sampler=sampler, drop_last=len(data) >= config.batch_size)


def ordered_loader(data: LabeledImages, config: TrainConfig) -> DataLoader[Any]:
    """Return batches that hold every sample once, in order."""
    return _loader(data, config)


def _loader(data: LabeledImages, config: TrainConfig, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        LedgerDataset(data),  # items are (image, label, id)
        config.batch_size,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=torch.accelerator.is_available(),
        **options,
    )
