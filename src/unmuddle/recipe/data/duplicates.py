"""Images that a data set holds more than once: equal in every pixel, or nearly."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import imagehash
import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from unmuddle.recipe.data.types import Splits

SIDE = 16  # of the perceptual hash, SIDE ** 2 bits
NEAR = 20  # bits that hashes of nearly equal images differ in at most
MOST = 20_000  # images among which nearly equal ones are looked for
_BLOCK = 2000  # images compared with all others at a time


Likeness = Literal["exact", "near"]


class Copy(NamedTuple):
    """Image of a group of equal images.

    Attributes:
        group: number of the group of equal images.
        likeness: "exact", equal in every pixel, or "near", such as scaled or compressed again.
        split: train, val or test.
        sample: id in that split.
        file: it comes from, if any.
        label: name of its class.
    """

    group: int
    likeness: Likeness
    split: str
    sample: int
    file: str
    label: str


def find_duplicates(splits: Splits) -> list[Copy]:
    """Find all images that have an equal or nearly equal one, group by group.

    Nearly equal images are looked for in sets of at most 20,000.
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
    """Return groups of images linked by perceptual hashes that differ in a few bits."""
    hashes = [imagehash.phash(Image.fromarray(image), hash_size=SIDE).hash for image in images]
    bits = torch.from_numpy(np.array(hashes)).flatten(1).float()
    signs, hash_of = (2 * bits - 1).unique(dim=0, return_inverse=True)
    # The product of two hashes of signs is the number of equal bits less that of different ones.
    pairs = torch.cat(
        [
            (block @ signs.T >= SIDE**2 - 2 * NEAR).nonzero() + torch.tensor([start, 0])
            for start, block in zip(range(0, len(signs), _BLOCK), signs.split(_BLOCK), strict=True)
        ]
    ).numpy()
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(signs),) * 2)
    members: dict[int, list[int]] = defaultdict(list)
    for image, component in enumerate(connected_components(graph)[1][hash_of].tolist()):
        members[component].append(image)
    return [group for group in members.values() if len(group) > 1]


def describe(copies: list[Copy]) -> str:
    """Say in a line how many there are, and whether splits share them or labels differ."""
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
