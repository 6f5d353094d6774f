"""The documentation as a site: its links lead somewhere, nothing comes from outside, it can be searched."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers import ROOT

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if LOADS.get(tag) in found and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.add(found[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        [*build, "--config-file", str(ROOT / "docs" / "mkdocs.yml")],
        capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            is_there = target.is_dir() or target.exists()
            if url.fragment and target in pages:
                is_there = unquote(url.fragment) in pages[target].anchors
            if not is_there:
                broken.append(f"{path.name}: {link}")
    assert len(pages) >= 14
    assert not broken


def test_nothing_is_loaded_from_outside(pages: dict[Path, Page]) -> None:
    outside = [
        url for page in pages.values() for url in page.loads if re.match(r"(https?:)?//", url)
    ]
    assert not outside


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_search_works_in_files(site: Path, tmp_path) -> None:
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*browser, "--virtual-time-budget=20000", f"--user-data-dir={tmp_path}", f"file://{site}/index.html?q=FeatureQueue"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found = re.search(r"search-result__meta\">\s*(\d+) matching", done.stdout)
    assert found
    assert int(found[1]) >= 3
