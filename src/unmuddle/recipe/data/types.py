"""Types that every data set is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


def digest(pixels: np.ndarray) -> bytes:
    """Return sixteen bytes that differ where shape or pixels do."""
    return blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()


class Images(Protocol):
    """Images `(3, H, W)` uint8; `digests` are equal for equal images."""

    digests: Sequence[bytes]

    def __getitem__(self, index: int, /) -> Tensor: ...

    def subset(self, ids: Tensor) -> "Images":
        """Return some of the images."""
        ...


@dataclass
class LabeledImages(Dataset[tuple[Tensor, int]]):
    """n images with labels; a sample's id is its index, the same in every run.

    Attributes:
        images: item i is an image; a tensor `(n, 3, H, W)` will do.
        labels: `(n,)` labels as given, with their noise.
        true_labels: `(n,)` if they are known to be something better.
        votes: `(n, K)` distribution of annotators' votes, if known.
        sources: file that each image comes from, if any.
        transform: applied to an image.
    """

    images: Images | Tensor
    labels: Tensor
    true_labels: Tensor | None = None
    votes: Tensor | None = None
    sources: list[str] | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, ids: Tensor) -> "LabeledImages":
        """Return some of the images, with ids that count anew."""
        images = self.images
        return LabeledImages(
            images[ids] if isinstance(images, Tensor) else images.subset(ids),
            self.labels[ids],
            None if self.true_labels is None else self.true_labels[ids],
            None if self.votes is None else self.votes[ids],
            None if self.sources is None else [self.sources[i] for i in ids.tolist()],
            self.transform,
        )

    def without_images(self, classes: Sequence[str]) -> list[str]:
        """Names of the classes that no image is labeled as."""
        counts = self.labels.bincount(minlength=len(classes)).tolist()
        return [name for name, count in zip(classes, counts, strict=True) if not count]

    @cached_property
    def digests(self) -> Sequence[bytes]:
        """Sixteen bytes an image, equal for images of equal pixels."""
        if isinstance(self.images, Tensor):
            return [digest(image.numpy()) for image in self.images]
        return self.images.digests

    def content(self, sample: int) -> str:
        """Digest of a sample's image as text."""
        return self.digests[sample].hex()

    def source(self, sample: int) -> str:
        """The file of a sample's image; nothing if it has none."""
        return self.sources[sample] if self.sources else ""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return `(image, label)`."""
        image = self.images[index]
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.labels[index])


@dataclass
class Splits:
    """The three splits of a data set.

    Attributes:
        train: to learn from.
        val: to select on.
        test: to report.
        classes: names, in label order.
        image_size: pixels a side that suit it.
        mirror: whether an image means the same mirrored.
        left_out: what of the data set is in no split: places by kind.
    """

    train: LabeledImages
    val: LabeledImages
    test: LabeledImages
    classes: tuple[str, ...]
    image_size: int
    mirror: bool = True
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def parts(self) -> dict[str, LabeledImages]:
        """Splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}
