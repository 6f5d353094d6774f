"""HTML page on which a person decides about suspect labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unmuddle.report.html import png, render

if TYPE_CHECKING:
    from unmuddle.recipe.audit import Suspect

THUMBNAIL = 112  # side length in pixels


def audit_page(suspects: "Sequence[Suspect]", classes: Sequence[str], title: str) -> str:
    """Return the page. It loads no external resources, and the browser stores the decisions.

    Its button saves a CSV file for `unmuddle train --labels` and `unmuddle repair --labels`.
    """
    rows = [s.row._asdict() | {"wrong": f"{s.wrong:.4f}"} for s in suspects]
    cards = [
        row
        | {
            "why": suspect.why,
            "name": "/".join(suspect.row.source.split("/")[-2:]) or f"sample {suspect.row.sample}",
            "image": png(suspect.image.permute(1, 2, 0).numpy(), THUMBNAIL),
        }
        for row, suspect in zip(rows, suspects, strict=True)
    ]
    return render("audit.html", title=title, cards=cards, rows=rows, classes=list(classes))
