"""Images that a data set holds more than once: equal in every pixel."""

from collections import defaultdict
from typing import NamedTuple

from unmuddle.recipe.data.types import Splits


class Copy(NamedTuple):
    """One of several equal images.

    Attributes:
        group: number of the group of equal images.
        split: train, val or test.
        sample: id in that split.
        file: it comes from, if any.
        label: name of its class.
    """

    group: int
    split: str
    sample: int
    file: str
    label: str


def find_duplicates(splits: Splits) -> list[Copy]:
    """All images that have an equal, group by group."""
    parts = splits.parts()
    places: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, part in parts.items():
        for sample, found in enumerate(part.digests):
            places[found].append((name, sample))
    groups = [group for group in places.values() if len(group) > 1]
    return [
        Copy(
            number,
            name,
            sample,
            parts[name].source(sample),
            splits.classes[int(parts[name].labels[sample])],
        )
        for number, group in enumerate(groups)
        for name, sample in group
    ]


def describe(copies: list[Copy]) -> str:
    """In a line, how many there are and whether splits share them or labels differ."""
    groups: dict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        groups[copy.group].append(copy)
    across = sum(len({copy.split for copy in group}) > 1 for group in groups.values())
    differ = sum(len({copy.label for copy in group}) > 1 for group in groups.values())
    return (
        f"{len(groups)} images occur more than once, {across} of them in several splits, "
        f"{differ} with different labels"
    )
