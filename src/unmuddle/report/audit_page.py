"""HTML page on which a person decides about suspect labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unmuddle.report.html import png, render

THUMBNAIL = 112  # pixels a side


class Card(NamedTuple):
    """Label in question.

    Attributes:
        sample: its id in the split.
        split: train, val or test.
        source: file of the image, if any.
        label: as given.
        suggested: another one.
        content: digest of the image, by which its decision is found again.
        why: the reason in words.
        wrong: probability that the label is wrong.
        pixels: `(H, W, 3)` uint8.
    """

    sample: int
    split: str
    source: str
    label: str
    suggested: str
    content: str
    why: str
    wrong: float
    pixels: np.ndarray

    @property
    def name(self) -> str:
        """Name of the image's file and of its folder."""
        return "/".join(self.source.split("/")[-2:]) or f"sample {self.sample}"

    @property
    def image(self) -> str:
        """Source of an `<img>`."""
        return png(self.pixels, THUMBNAIL)


def audit_page(cards: Sequence[Card], classes: Sequence[str], title: str) -> str:
    """Return the page. It loads nothing from elsewhere; the browser keeps decisions.

    Its button saves a CSV file for `unmuddle train --labels` and `unmuddle repair --labels`.
    """
    columns = ("sample", "split", "source", "label", "suggested", "content")
    rows = [{name: getattr(card, name) for name in columns} for card in cards]
    return render("audit.html", title=title, cards=cards, rows=rows, classes=list(classes))
