"""The pages say what was measured, and two commits are compared fairly."""

import json

import pytest

from benchmarks import pages
from benchmarks.timings import run as benchmarks
from tests.helpers import thinned


def test_the_page_is_what_the_results_say() -> None:
    results = json.loads(benchmarks.RESULTS.read_text())
    on_gpu = {f"{group}-cuda" for group in benchmarks.ON_GPU}
    assert set(benchmarks.GROUPS) <= set(results) <= set(benchmarks.GROUPS) | on_gpu
    for name in on_gpu - set(results):
        assert pages.section("benchmarks.md", name) == "Not run yet."
    for name, text in benchmarks.sections(results).items():
        assert pages.section("benchmarks.md", name) == text


def test_the_results_hold_every_case() -> None:
    results = json.loads(benchmarks.RESULTS.read_text())
    found = [(group, name) for group in benchmarks.GROUPS for name in results[group]["rows"]]
    assert found == list(benchmarks.cases(benchmarks.GROUPS))


@pytest.mark.parametrize("alone", thinned([True, False], 2))
def test_a_case_is_measured_with_its_peers_or_without(alone: bool) -> None:
    row = benchmarks.measured("supcon", "N = 64, D = 128", alone=alone)
    peers = {"eager", "compiled eager", "compiled unmuddle", "metric learning", "bare products"}
    peers = set() if alone else peers
    assert set(row["candidates"]) == {"unmuddle"} | peers
    assert all(found["seconds"] > 0 for found in row["candidates"].values())
    assert row["candidates"]["unmuddle"]["ratio"] == [1, 1, 1]


def test_a_case_of_another_package_than_the_one_asked_for_is_refused(tmp_path) -> None:
    with pytest.raises(SystemExit, match="measured another unmuddle"):
        benchmarks.measured("supcon", "N = 64, D = 128", tmp_path, alone=True)


def test_an_unknown_commit_is_refused() -> None:
    with pytest.raises(SystemExit, match="--base nowhere: no such commit"):
        benchmarks.compare("nowhere", ("arm",))


@pytest.mark.parametrize(
    ("base", "here", "expected"),
    [
        ([1.0, 1.01], [1.02, 1.03], ""),  # within the least band
        ([1.0, 1.01], [1.2, 1.21], "SLOWER"),
        ([1.0, 1.3], [1.2, 1.21], ""),  # two runs of the base differ by more
        ([1.0, 1.01], [0.8, 0.81], "faster"),
    ],
)
def test_a_ratio_outside_the_noise_is_flagged(base, here, expected: str) -> None:
    assert benchmarks.verdict(base, here)[2] == expected
