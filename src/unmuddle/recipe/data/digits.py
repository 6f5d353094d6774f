"""scikit-learn's 1,797 real 8 x 8 digits."""

from typing import Any

import numpy as np
import torch

from unmuddle.recipe.data.split import stratified_split
from unmuddle.recipe.data.types import LabeledImages, Splits

SIZE = 32


def load_digits(seed: int) -> Splits:
    """Load a stratified 60 / 20 / 20 % split. The test split does not depend on the seed."""
    from sklearn import datasets  # slow to import

    digits: Any = datasets.load_digits()
    grey = torch.from_numpy(np.asarray(digits["images"]) * 255 / 16).to(torch.uint8)
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(np.asarray(digits["target"])).to(torch.int64)

    rest, test = stratified_split(labels, 0.2, seed=0)
    train, val = stratified_split(labels[rest], 0.25, seed=seed)
    data = LabeledImages(images, labels, true_labels=labels)
    parts = [data.subset(ids) for ids in (rest[train], rest[val], test)]
    return Splits(*parts, classes=tuple("0123456789"), image_size=SIZE, mirror=False)
