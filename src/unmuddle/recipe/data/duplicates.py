"""Duplicate and near-duplicate images of a data set."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import imagehash
import numpy as np
from PIL import Image

from unmuddle.recipe.data.types import Splits

SIDE = 16  # the perceptual hash has SIDE ** 2 bits
NEAR = 20  # largest number of bits in which the hashes of near-duplicates differ
MOST = 20_000  # largest number of images among which near-duplicates are searched for


Likeness = Literal["exact", "near"]


class Copy(NamedTuple):
    """Image in a group of duplicates.

    Attributes:
        group: number of the group.
        likeness: "exact" if all pixels are equal, or "near", as after rescaling or recompressing.
        split: train, val or test.
        sample: sample id in that split.
        file: image file, if any.
        label: class name.
    """

    group: int
    likeness: Likeness
    split: str
    sample: int
    file: str
    label: str


def find_duplicates(splits: Splits) -> list[Copy]:
    """Find all duplicate and near-duplicate images, group by group.

    Near-duplicates are searched for only if the data set has at most 20,000 images.
    """
    parts = splits.parts()
    places: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, part in parts.items():
        for sample, digest in enumerate(part.digests):
            places[digest].append((name, sample))
    of_image = list(places.values())
    exact = [group for group in of_image if len(group) > 1]
    near: list[list[tuple[str, int]]] = []
    if sum(map(len, parts.values())) <= MOST:
        firsts = [
            parts[name].images[sample].permute(1, 2, 0).numpy() for (name, sample), *_ in of_image
        ]
        near = [[place for i in alike for place in of_image[i]] for alike in _near(firsts)]
    return [
        Copy(
            number,
            "exact" if number < len(exact) else "near",
            name,
            sample,
            parts[name].source(sample),
            splits.classes[int(parts[name].labels[sample])],
        )
        for number, group in enumerate(exact + near)
        for name, sample in group
    ]


def _near(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Return groups of images whose perceptual hashes differ in at most `NEAR` bits."""
    from sklearn.cluster import DBSCAN  # slow to import

    hashes = [
        imagehash.phash(Image.fromarray(image), hash_size=SIDE).hash.ravel() for image in images
    ]
    bits, hash_of = np.unique(np.array(hashes, np.float32), axis=0, return_inverse=True)
    # The squared distance of two hashes is the number of bits in which they differ.
    near = DBSCAN(eps=(NEAR + 0.5) ** 0.5, min_samples=1, algorithm="brute").fit_predict(bits)
    members: dict[int, list[int]] = defaultdict(list)
    for image, group in enumerate(near[hash_of.ravel()].tolist()):
        members[group].append(image)
    return [group for group in members.values() if len(group) > 1]


def describe(copies: list[Copy]) -> str:
    """Return a line that counts duplicates, groups across splits, and differing labels."""
    groups: dict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        groups[copy.group].append(copy)
    exact = [group for group in groups.values() if group[0].likeness == "exact"]
    across = sum(len({copy.split for copy in group}) > 1 for group in groups.values())
    differ = sum(len({copy.label for copy in group}) > 1 for group in groups.values())
    return (
        f"{len(exact)} images occur more than once, {len(groups) - len(exact)} nearly, {across} of "
        f"these groups in several splits, {differ} with different labels"
    )
