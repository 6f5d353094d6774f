"""HTML page on which a person decides about suspect labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unmuddle.report.html import png, render

THUMBNAIL = 112  # side length in pixels


class Card(NamedTuple):
    """Label that may be wrong, as shown on the page.

    Attributes:
        sample: sample id in the split.
        split: train, val or test.
        source: file of the image, if any.
        label: given label.
        suggested: suggested label.
        content: digest of the image, by which decisions are matched to images.
        why: reason in words.
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
        """Folder and file name of the image, or the sample id if it has no file."""
        return "/".join(self.source.split("/")[-2:]) or f"sample {self.sample}"

    @property
    def image(self) -> str:
        """Thumbnail for the `src` of an `<img>`."""
        return png(self.pixels, THUMBNAIL)


def audit_page(cards: Sequence[Card], classes: Sequence[str], title: str) -> str:
    """Return the page. It loads no external resources, and the browser stores the decisions.

    Its button saves a CSV file for `unmuddle train --labels` and `unmuddle repair --labels`.
    """
    columns = ("sample", "split", "source", "label", "suggested", "content")
    rows = [
        {name: getattr(card, name) for name in columns} | {"wrong": f"{card.wrong:.4f}"}
        for card in cards
    ]
    return render("audit.html", title=title, cards=cards, rows=rows, classes=list(classes))
