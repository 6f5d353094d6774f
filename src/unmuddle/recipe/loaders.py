"""Data loaders of a split. The order of the samples depends only on the seed and the epoch."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

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


class Order(Sampler[int]):
    """Sampler of the sample ids of an epoch.

    Args:
        size: number of ids. Without `weights`, each id is drawn once.
        seed: seed that determines the order, together with the epoch.
        weights: `(size,)` sampling weights. With them, ids are drawn with replacement.
    """

    def __init__(self, size: int, seed: int, weights: Tensor | None = None) -> None:
        self.size = size
        self.seed = seed
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(seed_for(RngStream.ORDER, self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=random)
        else:
            order = torch.multinomial(self.weights, self.size, True, generator=random)
        yield from order.tolist()


def training_loader(data: LabeledImages, config: TrainConfig, classes: int) -> DataLoader[Any]:
    """Return batches in random order.

    With `sampler="balanced"`, all classes are drawn equally often.
    """
    weights = None
    if config.sampler == "balanced":  # by the labels as given
        weights = (1 / data.labels.bincount(minlength=classes).double())[data.labels]
    return _loader(
        data,
        config,
        sampler=Order(len(data), config.seed, weights),
        # A last batch of only a few samples would disturb batch normalisation.
        drop_last=len(data) >= config.batch_size,
    )


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
