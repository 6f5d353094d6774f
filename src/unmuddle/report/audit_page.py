"""One HTML page on which somebody accepts or rejects suggested labels."""

import html
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unmuddle.report.pictures import png

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


def audit_page(cards: Sequence[Card], title: str) -> str:
    """The page, whole: nothing is loaded from elsewhere, decisions are kept by the browser.

    Its button saves a CSV of the columns sample, source, label, suggested, decision.
    """
    rows = [card._asdict() | {"pixels": None} for card in cards]
    # Nothing that a name holds can end the script.
    data = json.dumps({"title": title, "rows": rows}).replace("<", "\\u003c")
    body = "\n".join(_card(number, card) for number, card in enumerate(cards))
    return _PAGE.format(title=html.escape(title), count=len(cards), cards=body, data=data)


def _card(number: int, card: Card) -> str:
    name = html.escape(card.source.rsplit("/", 1)[-1] or f"sample {card.sample}")
    label, suggested = html.escape(card.label), html.escape(card.suggested)
    return f"""<article id="card-{number}">
<img src="{png(card.pixels, THUMBNAIL)}" alt="{name}" width="{THUMBNAIL}">
<div><h2><s>{label}</s> → <b>{suggested}</b></h2>
<p>{html.escape(card.why)}</p><p class="name" title="{html.escape(card.source)}">{name}</p>
<button data-decision="accept">Accept {suggested}</button>
<button data-decision="reject">Keep {label}</button></div></article>"""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8886; --accept: #2a7d4f; --reject: #a8412f; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 0; }}
header {{ position: sticky; top: 0; background: Canvas; border-bottom: 1px solid var(--line);
  padding: .7rem 1rem; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }}
h1 {{ font-size: 1.1rem; margin: 0; }}
header p {{ margin: 0; flex: 1 1 16rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: .7rem;
  padding: 1rem; }}
article {{ display: flex; gap: .8rem; border: 1px solid var(--line); border-left-width: 6px;
  border-radius: 6px; padding: .7rem; }}
article.accept {{ border-left-color: var(--accept); }}
article.reject {{ border-left-color: var(--reject); }}
img {{ width: 112px; height: 112px; flex: none; border-radius: 4px; }}
h2 {{ font-size: 1rem; font-weight: normal; margin: 0; }}
article p {{ margin: .25rem 0; font-size: .85rem; overflow-wrap: anywhere; }}
.name {{ opacity: .7; }}
button {{ font: inherit; font-size: .85rem; padding: .25rem .6rem; border-radius: 4px;
  border: 1px solid var(--line); background: transparent; cursor: pointer; }}
.accept [data-decision=accept] {{ background: var(--accept); color: white; }}
.reject [data-decision=reject] {{ background: var(--reject); color: white; }}
</style></head><body>
<header><h1>{title}</h1>
<p>{count} labels that the predictions contradict most. <span id="count"></span></p>
<button id="save">Save labels.csv</button></header>
<main>
{cards}
</main>
<script>
const {{ title, rows }} = {data};
const key = "unmuddle audit " + title + " " + rows.map(r => r.sample).join();
let decisions = {{}};
try {{ decisions = JSON.parse(localStorage.getItem(key)) || {{}}; }} catch {{ /* may be off */ }}
function show() {{
  rows.forEach((row, i) => {{
    document.getElementById("card-" + i).className = decisions[row.sample] || "";
  }});
  const all = Object.values(decisions);
  const accepted = all.filter(d => d === "accept").length;
  document.getElementById("count").textContent =
    accepted + " accepted, " + (all.length - accepted) + " rejected.";
}}
rows.forEach((row, i) => document.getElementById("card-" + i).addEventListener("click", event => {{
  const decision = event.target.dataset.decision;
  if (!decision) return;
  if (decisions[row.sample] === decision) delete decisions[row.sample];
  else decisions[row.sample] = decision;
  try {{ localStorage.setItem(key, JSON.stringify(decisions)); }} catch {{ /* may be off */ }}
  show();
}}));
function csv() {{
  const cell = value => '"' + String(value).replaceAll('"', '""') + '"';
  const lines = [["sample", "source", "label", "suggested", "decision"]].concat(
    rows.map(r => [r.sample, r.source, r.label, r.suggested, decisions[r.sample] || ""]));
  return lines.map(line => line.map(cell).join(",")).join("\\r\\n") + "\\r\\n";
}}
document.getElementById("save").addEventListener("click", () => {{
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], {{ type: "text/csv" }}));
  link.download = "labels.csv";
  link.click();
}});
show();
</script></body></html>
"""
