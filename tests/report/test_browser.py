"""The pages in a real browser: whole, legible, and without a look at the network."""

import csv
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.run_files import write_run
from unmuddle.recipe.audit import Suspect
from unmuddle.recipe.decisions import Row
from unmuddle.report.audit_page import audit_page
from unmuddle.report.report_page import report_page
from unmuddle.report.runs import read_runs

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium")

# Run before anything else of the page; what it finds is the text of <output>.
PROBE = """<script>
const refused = [];
addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
addEventListener("error", event => refused.push(event.message || event.target.outerHTML), true);
addEventListener("load", () => {
  const brightness = color => color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 765;
  const found = {
    refused,
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    plots: [...document.querySelectorAll("figure")].map(figure => {
      const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
      const text = svg.querySelector("text");
      return {
        title: figure.querySelector("h3").textContent, width: box.width, height: box.height,
        shapes: svg.querySelectorAll("path, use").length,
        ink: brightness(getComputedStyle(text).fill),
      };
    }),
    images: [...document.images].map(image => image.naturalWidth),
    window: innerWidth, page: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
  };
  document.body.append(Object.assign(document.createElement("output"), {
    textContent: JSON.stringify(found) }));
});
</script>"""


def look(page: str, path: Path, *options: str) -> dict[str, Any]:
    """Open the page in the browser, and say what is there."""
    probed = page.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    probed = probed.replace("<meta charset", PROBE + "<meta charset")
    return json.loads(output(probed, path, *options))


def output(page: str, path: Path, *options: str) -> str:
    """What the page writes into <output> when it is opened."""
    path.write_text(page, encoding="utf-8")
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={path.parent / 'profile'}", *options, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    return unescape(re.findall(r"<output>(.*)</output>", shown, re.DOTALL)[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    return report_page(read_runs([write_run(folder / name) for name in ("one", "two")]))


@pytest.mark.parametrize("width", [1300, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_report(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    found = look(
        page, tmp_path / "report.html", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={int(not dark)}",
    )  # fmt: skip
    assert found["refused"] == []
    assert [name for name in found["requests"] if not name.startswith("data:")] == []
    assert found["window"] == width
    assert found["page"] <= width, "has to be scrolled sideways"
    assert found["dark"] is dark
    assert len(found["plots"]) == 3 + 2 * 6
    for plot in found["plots"]:
        assert plot["width"] > 200, plot
        assert plot["height"] > 150, plot
        assert plot["shapes"] > 5, plot
        assert (plot["ink"] > 0.6) is dark, plot
    assert found["images"] == [8] * 6


def test_the_probe_sees_what_is_wrong(page: str, tmp_path: Path) -> None:
    worse = page.replace(
        "<h1>", '<img src="https://example.org/x.png"><p style="width: 3000px">x</p><h1>'
    )
    found = look(worse, tmp_path / "report.html", "--window-size=1300,900")
    assert any("example.org" in refused for refused in found["refused"])
    assert found["page"] > 1300


SOURCE = 'faces/a "b", </script>.png'


def audited(tmp_path: Path, actions: str) -> list[Any]:
    """What a script finds on a page of four labels after its actions."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    suspects = [
        Suspect(Row(sample, split, SOURCE, label, "ang&ry", "", f"c{sample}"), wrong, "because", image)
        for sample, split, label, wrong in (
            (7, "train", "sad", 0.99), (3, "val", "sad", 0.9), (5, "train", "glad", 0.6), (1, "test", "sad", 0.2),
        )
    ]  # fmt: skip
    script = f"""<script>
        const press = (card, what) => document.querySelector(`#card-${{card}} [data-decision=${{what}}]`).click();
        const choose = (where, value) => {{
            const select = document.querySelector(where);
            select.value = value;
            select.dispatchEvent(new Event("change"));
        }};
        const key = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
        const decided = () => rows.map((_, i) => decisions[i] || "");
        {actions}
        document.body.append(Object.assign(document.createElement("output"), {{ textContent: JSON.stringify(found) }}));
    </script></body>"""
    page = audit_page(suspects, ["ang&ry", "glad", "sad"], "Labels of <run>")
    return json.loads(output(page.replace("</body>", script), tmp_path / "index.html"))


def test_audit_decisions_become_a_table(tmp_path: Path) -> None:
    shown, table = audited(tmp_path, """
        press(0, "accept"); press(1, "accept"); press(1, "reject"); press(2, "reject"); press(2, "reject");
        choose("#card-3 select", "to glad");
        const found = [document.getElementById("count").textContent, csv()];
    """)  # fmt: skip
    assert shown == "2 accepted, 1 rejected."
    assert table.count("\n") == 5
    assert list(csv.reader(table.splitlines())) == [
        ["sample", "split", "source", "label", "suggested", "decision", "content", "wrong"],
        ["7", "train", SOURCE, "sad", "ang&ry", "accept", "c7", "0.9900"],
        ["3", "val", SOURCE, "sad", "ang&ry", "reject", "c3", "0.9000"],
        ["5", "train", SOURCE, "glad", "ang&ry", "", "c5", "0.6000"],
        ["1", "test", SOURCE, "sad", "ang&ry", "to glad", "c1", "0.2000"],
    ]


def test_shown_labels_are_accepted_together_and_taken_back(tmp_path: Path) -> None:
    found = audited(tmp_path, """
        press(1, "reject");
        choose("#label", "sad"); choose("#least", "0.5");
        const visible = cards.filter(card => !card.hidden).length;
        document.getElementById("all").click();
        const all = decided();
        document.getElementById("undo").click();
        const found = [visible, all, decided()];
    """)  # fmt: skip
    assert found == [2, ["accept", "reject", "", ""], ["", "reject", "", ""]]


def test_keys_decide_and_move(tmp_path: Path) -> None:
    found = audited(tmp_path, """
        key("a"); key("ArrowRight"); key("k"); key("ArrowRight"); key("a"); key("u");
        choose("#label", "sad"); key("ArrowRight"); key("a"); key("ArrowLeft");
        const focused = document.activeElement.id;
        choose("#label", "glad"); key("k");
        const found = [decided(), focused];
    """)  # fmt: skip
    assert found == [["accept", "reject", "reject", "accept"], "card-1"]
