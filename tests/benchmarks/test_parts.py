"""The study: which cells there are, what is kept of a run, and what is said of the rows."""

import json
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_rel

from benchmarks import pages
from benchmarks.studies import evidence, parts, runs
from tests.helpers import ROOT
from unmuddle.cli import main
from unmuddle.recipe.config import TrainConfig

TINY = "--backbone=tests.helpers.networks:tiny"


@pytest.fixture
def _tiny_is_found(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def row(right: list[int], seed: int = 0, **other) -> evidence.Row:
    return {"right": "".join(map(str, right)), "seed": seed} | other


def test_the_page_is_what_the_rows_say() -> None:
    rows = runs.read_results(parts.RESULTS)
    for name, text in evidence.SECTIONS.items():
        assert pages.section("scratch.md", name) == text(rows)


def test_every_row_is_of_a_cell_and_of_the_settings_as_they_stand() -> None:
    cells = {cell.name(): cell for group in parts.GROUPS for cell in parts.cells(group)}
    rows = runs.read_results(parts.RESULTS)
    assert len({row["name"] for row in rows}) == len(rows)
    for found in rows:
        assert (found["split"] == "test") == (found["name"] in cells)
        if found["split"] == "test":
            assert found["settings"] == parts.settings(cells[found["name"]].data)[1]
        assert found["accuracy"] == pytest.approx(evidence.hits(found).mean())


def test_every_cell_is_there_once_and_has_options_that_train_takes() -> None:
    cells = {group: list(parts.cells(group)) for group in parts.GROUPS}
    sizes = {group: len(found) for group, found in cells.items()}
    assert sizes == {"ablation": 48, "small": 80, "relabeling": 30, "votes": 6}
    everything = [cell for found in cells.values() for cell in found]
    assert len({cell.name() for cell in everything}) == len(everything)
    for cell in everything:
        options = parts.options_of(cell, parts.SETTINGS, parts.SETTINGS)
        given = dict(option.removeprefix("--").split("=", 1) for option in options)
        assert set(given) <= set(vars(TrainConfig()))
        assert given["parts"] == cell.parts


@pytest.mark.usefixtures("_tiny_is_found")
def test_a_run_becomes_a_row(tmp_path) -> None:
    cell = parts.Cell("digits", "symmetric:0.2", "published_arm", 3)
    options = ["--data=digits", "--noise=symmetric:0.2", "--parts=published_arm", "--seed=3"]
    found = parts.run_cell(cell, [*options, "--epochs=1", TINY], tmp_path)
    summary = json.loads((tmp_path / cell.name() / "summary.json").read_text())
    assert found["accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert evidence.hits(found).mean() == pytest.approx(found["accuracy"])
    assert (found["data"], found["seed"]) == ("digits", 3)
    running = [leak["accuracy"] for leak in found["leak"] if leak["affinity"] == "running"]
    assert running == [pytest.approx(found["accuracy"])] * 8
    assert len(found["leak"]) == 16
    json.dumps(found)


def test_a_run_to_choose_settings_by_never_shows_its_test_figures(tmp_path, monkeypatch) -> None:
    def train_here(options: list[str], run: Path) -> None:
        assert main(["train", "--quiet", *options, f"--out={run}"]) == 0

    monkeypatch.setattr(runs, "train_run", train_here)  # in a process of its own above
    cell = parts.Cell("digits", "none", "none", parts.DEVELOPMENT[0])
    options = ["--data=digits", "--parts=none", "--epochs=1", TINY]
    found = parts.run_cell(cell, options, tmp_path)
    summary = json.loads((tmp_path / cell.name() / "summary.json").read_text())
    assert found["split"] == "val"
    assert found["accuracy"] == found["last"] == pytest.approx(summary["val_accuracy"])
    assert summary["test"]["accuracy"] not in found.values()


def test_settings_that_are_not_committed_are_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "parts.yaml"
    path.write_text("digits: {epochs: 1}\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "SETTINGS", path)
    with pytest.raises(SystemExit, match="commit first"):
        runs.frozen_commit(parts.SETTINGS)
    for command in (["add", "."], ["commit", "-qm", "settings"]):
        subprocess.run([*git, *command], check=True)
    runs.frozen_commit(parts.SETTINGS)
    path.write_text("digits: {epochs: 2}\n")
    with pytest.raises(SystemExit, match="commit first"):
        runs.frozen_commit(parts.SETTINGS)


def some_cells(monkeypatch, tmp_path: Path, outcome: Callable[[parts.Cell], evidence.Row]) -> None:
    """A study of four cells, each of which has this outcome."""
    (tmp_path / "parts.jsonl").touch()
    monkeypatch.setattr(parts, "RESULTS", tmp_path / "parts.jsonl")
    monkeypatch.setattr(runs, "frozen_commit", lambda _: "abc")
    monkeypatch.setattr(
        parts, "cells", lambda _: [parts.Cell("digits", "none", "arm", n) for n in range(4)]
    )
    monkeypatch.setattr(parts, "run_cell", lambda cell, options, out: outcome(cell))


def test_a_cell_that_fails_is_named_and_the_others_run_once(tmp_path, monkeypatch) -> None:
    ran = []

    def outcome(cell: parts.Cell) -> evidence.Row:
        ran.append(cell.seed)
        if ran == [0]:
            raise subprocess.CalledProcessError(1, "train")
        return cell._asdict()

    some_cells(monkeypatch, tmp_path, outcome)
    (failed,) = parts.run_missing(parts.cells("small"), None, tmp_path, 1)
    assert failed.startswith("digits_none_arm_0: CalledProcessError")
    assert [row["seed"] for row in runs.read_results(parts.RESULTS)] == [1, 2, 3]
    assert parts.run_missing(parts.cells("small"), None, tmp_path, 1) == []
    assert ran == [0, 1, 2, 3, 0]
    assert [row["seed"] for row in runs.read_results(parts.RESULTS)] == [0, 1, 2, 3]


def test_an_interrupted_study_starts_no_more_cells(tmp_path, monkeypatch) -> None:
    ran = []

    def outcome(cell: parts.Cell) -> evidence.Row:
        ran.append(cell.seed)
        if cell.seed == 0:
            raise KeyboardInterrupt
        time.sleep(1)  # as long as it takes to train
        return cell._asdict()

    some_cells(monkeypatch, tmp_path, outcome)
    with pytest.raises(KeyboardInterrupt):
        parts.run_missing(parts.cells("small"), None, tmp_path, 1)
    assert len(ran) <= 2


def test_a_run_begun_with_other_settings_is_not_gone_on_with(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("went on"))
    cell = next(parts.cells("small"))
    options = ["--data=digits", "--epochs=3", "--lr=3e-3", "--precision=no"]
    config = tmp_path / cell.name() / "config.yaml"
    config.parent.mkdir()
    begun = {"data": "digits", "epochs": 3, "lr": 0.003, "precision": "no", "views": None}
    config.write_text(yaml.safe_dump(begun))
    runs.check_options(options, config.parent)
    with pytest.raises(ValueError, match="was begun with {'views': None}"):
        runs.check_options(["--views=1"], config.parent)
    config.write_text(yaml.safe_dump(begun | {"epochs": 999}))
    with pytest.raises(ValueError, match="was begun with {'epochs': 999}; remove it"):
        parts.run_cell(cell, options, tmp_path)


def test_a_try_replaces_settings_and_keeps_to_its_own_seeds() -> None:
    settled = parts.settings("ferplus")[0]
    found = list(parts.tries("parts=uerm epochs=7 warmup=0.2"))
    assert [cell.seed for cell in found] == list(parts.DEVELOPMENT)
    options = parts.options_of(found[0], Path("faces"), None)
    given = dict(option.removeprefix("--").split("=", 1) for option in options)
    expected = {"parts": "uerm", "noise": "symmetric:0.2", "epochs": "7", "warmup": "0.2"}
    expected |= {"lr": str(settled["lr"]), "data": "ferplus:faces"}
    assert given.items() >= expected.items()
    names = {cell.name() for text in ("epochs=7", "epochs=8") for cell in parts.tries(text)}
    assert len(names) == 6


@pytest.mark.parametrize("text", ["epochs 7", "epoch=7", "seed=0", "data=ferplus:faces"])
def test_a_try_that_cannot_be_run_as_said_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match=rf"--tries '{text}': .*expected"):
        list(parts.tries(text))


def test_a_second_training_is_given_the_labels_of_the_first(tmp_path, monkeypatch) -> None:
    trained = []
    monkeypatch.setattr(runs, "train_run", lambda options, path: trained.append((options, path)))
    monkeypatch.setattr(runs, "figures", lambda run, split: {"run": run, "split": split})
    cell = next(parts.tries("data=digits parts=uerm labels=relabeled"))
    row = parts.run_cell(cell, parts.options_of(cell, None, None), tmp_path)
    (first, before), (second, after) = trained
    assert row["run"] == after != before
    assert row["split"] == "val"
    assert second == [*first, f"--labels={before}/relabeled.csv"]


def test_a_certain_difference_has_no_interval() -> None:
    found = evidence.difference([(row([0, 0]), row([1, 1])), (row([0, 0], 1), row([1, 1], 1))])
    assert found == (2, 1, 0, pytest.approx(0, abs=1e-6), math.inf)


def test_runs_of_one_seed_are_averaged_first() -> None:
    often = [(row([0, 0]), row([1, 1]))] * 3
    once = [(row([1, 1], 1), row([0, 0], 1))]
    found = evidence.difference(often + once)
    assert (found.seeds, found.mean, found.p, found.gained) == (2, 0, 1, 3)


def test_p_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    base, better = random.integers(2, size=(2, 4, 50))
    pairs = [(row(list(base[s]), s), row(list(better[s]), s)) for s in range(4)]
    expected = ttest_rel(better.mean(1), base.mean(1)).pvalue
    assert evidence.difference(pairs).p == pytest.approx(expected)


@pytest.mark.parametrize("seed_spread", [0, 0.01, 0.1])
def test_the_interval_holds_the_truth_as_often_as_it_says(seed_spread: float) -> None:
    random = np.random.default_rng(0)
    trials, held = 400, 0
    for _ in range(trials):
        chance = 0.55 + seed_spread * random.standard_normal((3, 1))
        base = (random.random((3, 1000)) < 0.5).astype(int)
        better = (random.random((3, 1000)) < chance).astype(int)
        pairs = [(row(list(base[s]), s), row(list(better[s]), s)) for s in range(3)]
        found = evidence.difference(pairs)
        held += abs(found.mean - 0.05) <= found.radius
    assert held / trials > 0.925  # more than two standard errors of a share of 0.95 below it


def test_seeds_that_agree_leave_the_spread_of_the_test_samples() -> None:
    base, better = np.random.default_rng(0).integers(2, size=(2, 100))
    found = evidence.difference([(row(list(base), s), row(list(better), s)) for s in range(3)])
    deviation = (better - base).std(ddof=1)
    assert found.radius == pytest.approx(1.96 * deviation / 10, rel=1e-3)


def test_an_effect_pairs_runs_that_differ_in_the_part_alone() -> None:
    same = {"data": "d", "noise": "n", "split": "test", "variant": ""}
    # Each part adds one right sample of four, but published_arm takes it away beside uerm.
    right = {parts: len(parts.split(",")) for parts in evidence.PARTS if parts != "none"}
    right |= {"none": 0, "published_arm,uerm": 1, "supcon,published_arm,uerm": 2}
    rows = [row([1] * n + [0] * (4 - n), parts=parts, **same) for parts, n in right.items()]
    rows.append(row([1] * 4, seed=1, parts="published_arm", **same))  # a seed that is not complete
    lines = [line.split("|") for line in evidence.effects(rows, "d", "n").splitlines()[2:]]
    assert [(line[1].strip(), line[2].strip(), line[3].split()[0]) for line in lines] == [
        ("supcon", "1", "+25.0"),
        ("published_arm", "1", "+12.5"),
        ("uerm", "1", "+12.5"),
    ]
