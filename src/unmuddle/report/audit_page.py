"""One HTML page on which somebody accepts or rejects suggested labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unmuddle.report.html import png, render

THUMBNAIL = 112  # pixels a side


class Card(NamedTuple):
    """One label in question.

    Attributes:
        sample: its id.
        source: file of the image, if any.
        label: as given.
        suggested: another one.
        why: the reason in words.
        pixels: `(H, W, 3)` uint8.
    """

    sample: int
    source: str
    label: str
    suggested: str
    why: str
    pixels: np.ndarray

    @property
    def name(self) -> str:
        """Of the image's file and the folder that it is in."""
        return "/".join(self.source.split("/")[-2:]) or f"sample {self.sample}"

    @property
    def image(self) -> str:
        """For an `<img>`."""
        return png(self.pixels, THUMBNAIL)


def audit_page(cards: Sequence[Card], title: str) -> str:
    """The page, whole: nothing is loaded from elsewhere, decisions are kept by the browser.

    Its button saves a CSV of the columns sample, source, label, suggested, decision.
    """
    rows = [card._asdict() | {"pixels": None} for card in cards]
    return render("audit.html", title=title, cards=cards, rows=rows)
