"""The study: which cells there are, what is kept of a run, and what is said of the rows."""

import json
import subprocess

import numpy as np
import pytest

import evidence
import pages
import study
from unmuddle.recipes.config import TrainConfig


def row(right: list[int], seed: int = 0, **other) -> evidence.Row:
    return {"right": "".join(map(str, right)), "seed": seed} | other


def test_the_page_is_what_the_rows_say() -> None:
    rows = study.read_results()
    for name, text in evidence.SECTIONS.items():
        assert pages.section("evidence.md", name) == text(rows)


def test_every_row_is_of_a_cell_and_of_the_settings_as_they_stand() -> None:
    cells = {cell.name(): cell for group in study.GROUPS for cell in study.cells(group)}
    rows = study.read_results()
    assert len({row["name"] for row in rows}) == len(rows)
    for found in rows:
        assert found["settings"] == study.settings(cells[found["name"]].data)[1]
        assert found["test"] == pytest.approx(evidence.hits(found).mean())


def test_every_cell_is_there_once_and_has_options_that_train_takes() -> None:
    cells = {group: list(study.cells(group)) for group in study.GROUPS}
    sizes = {group: len(found) for group, found in cells.items()}
    assert sizes == {"ablation": 48, "small": 80, "relabeling": 27, "votes": 6}
    everything = [cell for found in cells.values() for cell in found]
    assert len({cell.name() for cell in everything}) == len(everything)
    for cell in everything:
        options = study.options_of(cell, study.SETTINGS, study.SETTINGS)
        given = dict(option.removeprefix("--").split("=", 1) for option in options)
        assert set(given) <= set(vars(TrainConfig()))
        assert given["parts"] == cell.parts


def test_a_run_becomes_a_row(tmp_path) -> None:
    cell = study.Cell("synthetic", "symmetric:0.2", "arm", 3)
    options = ["--data=synthetic:70", "--noise=symmetric:0.2", "--parts=arm", "--epochs=1"]
    found = study.run_cell(cell, [*options, "--seed=3"], tmp_path)
    summary = json.loads((tmp_path / cell.name() / "summary.json").read_text())
    assert found["test"] == pytest.approx(summary["test"]["accuracy"])
    assert evidence.hits(found).mean() == pytest.approx(found["test"])
    assert found["data"], found["seed"] == ("synthetic", 3)
    running = {leak["test"] for leak in found["leak"] if leak["affinity"] == "running"}
    assert running == {pytest.approx(found["test"])}
    assert len(found["leak"]) == 16
    json.dumps(found)


def test_settings_that_are_not_committed_are_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("digits: {epochs: 1}\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "settings"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "SETTINGS", path)
    study.check_frozen()
    path.write_text("digits: {epochs: 2}\n")
    with pytest.raises(SystemExit, match="commit it first"):
        study.check_frozen()


def test_a_certain_difference_has_no_interval() -> None:
    found = evidence.difference([(row([0, 0]), row([1, 1])), (row([0, 0], 1), row([1, 1], 1))])
    assert found[:4] == (2, 1, 1, 1)


def test_runs_of_one_seed_are_averaged_first() -> None:
    often = [(row([0, 0]), row([1, 1]))] * 3
    once = [(row([1, 1], 1), row([0, 0], 1))]
    assert evidence.difference(often + once).mean == 0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        base, better = (random.random((2, 3, 300)) < [[[0.7]], [[0.75]]]).astype(int)
        pairs = [(row(list(base[s]), s), row(list(better[s]), s)) for s in range(3)]
        found = evidence.difference(pairs)
        held += found.low <= 0.05 <= found.high
    assert 0.88 <= held / 200 <= 1


def test_an_effect_pairs_runs_that_differ_in_the_part_alone() -> None:
    same = {"data": "d", "noise": "n", "variant": ""}
    # Each part adds one right sample of four, but arm takes it away beside uerm.
    right = {parts: len(parts.split(",")) for parts in evidence.PARTS if parts != "none"}
    right |= {"none": 0, "arm,uerm": 1, "supcon,arm,uerm": 2}
    rows = [row([1] * n + [0] * (4 - n), parts=parts, **same) for parts, n in right.items()]
    lines = evidence.effects(rows, "d", "n").splitlines()[2:]
    assert [line.split("|")[1:4] for line in lines] == [
        [" supcon ", " 4 ", " +25.0 (+0.0 to +75.0) "],
        [" arm ", " 4 ", " +0.0 (-25.0 to +25.0) "],
        [" uerm ", " 4 ", " +0.0 (-25.0 to +25.0) "],
    ]
