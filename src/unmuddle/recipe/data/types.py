"""Types shared by all data sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


def digest(pixels: np.ndarray) -> bytes:
    """Return a 16-byte digest of the shape and the pixels."""
    return blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()


class Images(Protocol):
    """Sequence of images `(3, H, W)` uint8."""

    def __getitem__(self, index: int, /) -> Tensor: ...

    def subset(self, ids: Tensor) -> "Images":
        """Return a subset of the images."""
        ...


@dataclass
class LabeledImages(Dataset[tuple[Tensor, int]]):
    """Data set of n images with labels.

    The id of a sample is its index, which is the same in every run.

    Attributes:
        images: sequence of images, which may be a tensor `(n, 3, H, W)`.
        labels: `(n,)` labels as given, including noise.
        true_labels: `(n,)` true labels, or at least better ones than `labels`, if known.
        votes: `(n, K)` distribution of annotators' votes, if known.
        sources: file that each image comes from, if any.
        transform: transform of a batch of images `(N, 3, H, W)`.
    """

    images: Images | Tensor
    labels: Tensor
    true_labels: Tensor | None = None
    votes: Tensor | None = None
    sources: list[str] | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    digests: Sequence[bytes] = ()

    def __post_init__(self) -> None:
        if not self.digests:
            self.digests = [digest(image.numpy()) for image in self.images]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, ids: Tensor) -> "LabeledImages":
        """Return a subset of the samples. Their ids are renumbered from 0."""
        images, chosen = self.images, ids.tolist()
        return LabeledImages(
            images[ids] if isinstance(images, Tensor) else images.subset(ids),
            self.labels[ids],
            None if self.true_labels is None else self.true_labels[ids],
            None if self.votes is None else self.votes[ids],
            None if self.sources is None else [self.sources[i] for i in chosen],
            self.transform,
            [self.digests[i] for i in chosen],
        )

    def without_images(self, classes: Sequence[str]) -> list[str]:
        """Return the names of the classes without any image."""
        counts = self.labels.bincount(minlength=len(classes)).tolist()
        return [name for name, count in zip(classes, counts, strict=True) if not count]

    def content(self, sample: int) -> str:
        """Return the digest of a sample's image in hexadecimal."""
        return self.digests[sample].hex()

    def source(self, sample: int) -> str:
        """Return the file of a sample's image, or an empty string if it has none."""
        return self.sources[sample] if self.sources else ""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return `(image, label)`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, ids: list[int]) -> list[tuple[Tensor, int]]:
        """Return `(image, label)` of several samples."""
        images = self.images
        batch = images[ids] if isinstance(images, Tensor) else torch.stack([images[i] for i in ids])
        if self.transform is not None:
            batch = self.transform(batch)
        return [*zip(batch, self.labels[ids].tolist(), strict=True)]


@dataclass
class Splits:
    """The three splits of a data set.

    Attributes:
        train: training split.
        val: validation split, for model selection.
        test: test split.
        classes: class names in label order.
        image_size: image side length in pixels for the network.
        mirror: whether mirroring an image preserves its class.
        left_out: places of the items that are in no split, by kind.
    """

    train: LabeledImages
    val: LabeledImages
    test: LabeledImages
    classes: tuple[str, ...]
    image_size: int
    mirror: bool = True
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def parts(self) -> dict[str, LabeledImages]:
        """Return the splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}
