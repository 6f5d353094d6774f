"""The study of a pretrained network: its page, its methods' costs, and a cell of two trainings."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from benchmarks import pages
from benchmarks.studies import evidence, pretrained, runs
from benchmarks.studies.label_figures import Problem
from benchmarks.studies.pretrained import METHODS, Cell
from tests.helpers.layouts import make_ferplus
from tests.helpers.networks import tiny
from unmuddle.cli import main
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.run_folder import RunFolder

TINY = {
    "backbone": "tests.helpers.networks:tiny", "epochs": 1, "batch_size": 4, "image_size": 16,
    "views": 1,
}  # fmt: skip


def test_the_page_is_what_the_rows_say() -> None:
    rows = runs.read_results(pretrained.RESULTS)
    for name, text in pretrained.SECTIONS.items():
        assert pages.section("evidence.md", name) == text(rows)


def cost(options: str) -> int:
    given = dict(option.split("=") for option in options.split())
    assert given.keys() <= {field.name for field in fields(TrainConfig)}
    return pretrained.passes({k: str(v) for k, v in pretrained.SETTINGS.items()} | given)


def test_predictions_cost_passes_unless_they_are_of_training_steps() -> None:
    assert cost("parts=uerm epochs=5 warmup=0.4") == 3 * 5 + 2 * 4
    assert cost("parts=uerm epochs=5 relabel_evidence=batches") == 3 * 5


@pytest.mark.parametrize("name", METHODS)
def test_no_method_costs_more_than_plain_cross_entropy_or_much_less(name: str) -> None:
    method, plain = METHODS[name], cost(METHODS["none"].options)
    total = cost(method.options) + (cost(method.first) if method.first else 0)
    assert 0.9 * plain < total <= plain


def test_cells_have_names_of_their_own_and_tries_their_options() -> None:
    cells = [*pretrained.cells(pretrained.GROUPS)]
    assert len({cell.name() for cell in cells}) == len({*cells})
    assert Cell("none", "human", 0).name() == "none_human_0"
    found = [*pretrained.tries(["uerm human lr=1e-3", "none human"])]
    assert found[:2] == [Cell("uerm", "human", 100, "lr=1e-3"), Cell("none", "human", 100)]
    assert [cell.seed for cell in found[::2]] == list(pretrained.DEVELOPMENT)


def test_a_person_verifies_the_labels_that_cleanlab_doubts_most(monkeypatch) -> None:
    given, truth = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 0, 0])
    problem = Problem(given, truth, list("abcd"), ("left", "right"))
    doubt = torch.tensor([0.9, 0.6, 0.5, 0.7])  # the probability that the label is wrong
    probabilities = torch.stack([1 - doubt, doubt], 1)
    probabilities[given == 1] = probabilities[given == 1].flip(1)
    monkeypatch.setattr(pretrained, "predictions", lambda *_: probabilities.double().numpy())
    monkeypatch.setattr(pretrained, "ASKED", 2)
    assert pretrained.verified(Path(), problem).tolist() == [0, 1, 0, 0]


QUICK = "parts=uerm epochs=2 warmup=1"
CELL = Cell("none", "symmetric:0.2", 0, "epochs=2")


@pytest.mark.filterwarnings(
    "ignore:May not flag", "ignore:The least populated class", "ignore:Number of classes"
)
def test_cells_of_two_trainings_become_rows(tmp_path: Path, monkeypatch) -> None:
    def train_run(options: list[str], path: Path, *more: str) -> None:
        given = [f"--resume={path}"] if path.exists() else [*options, f"--out={path}"]
        assert main(["train", "--quiet", *given, *more]) == 0

    monkeypatch.setattr(pretrained, "SETTINGS", TINY)
    monkeypatch.setitem(METHODS, "cleanlab", METHODS["cleanlab"]._replace(first=QUICK))
    monkeypatch.setitem(METHODS, "answers", METHODS["answers"]._replace(asks=4))
    monkeypatch.setattr(runs, "train_run", train_run)
    weights, ferplus = tmp_path / "weights.pt", make_ferplus(tmp_path / "faces", each=12)
    torch.save(tiny().state_dict(), weights)
    whole = make_ferplus(tmp_path / "whole", each=20)
    rows = [
        {"name": method, "commit": "abc"}
        | pretrained.run_cell(CELL._replace(method=method), ferplus, whole, weights, tmp_path)
        for method in ("none", "cleanlab", "answers")
    ]
    assert rows[0]["faces"] == rows[2]["faces"] >= rows[1]["faces"]
    assert (tmp_path / "none_symmetric-0.2_0_epochs=2.csv").exists()
    for epoch in ("last", "best"):
        row = pretrained.at(rows, epoch)[0]
        found = evidence.hits(row)
        assert len(found) == len(row["right"]) + row["further"]
        assert found[-row["further"] :].mean() == pytest.approx(row["further_accuracy"])
    summary = RunFolder(tmp_path / CELL.name()).summary()
    tested = (summary["test_last_epoch"]["accuracy"], summary["test"]["accuracy"])
    assert (rows[0]["last"]["accuracy"], rows[0]["best"]["accuracy"]) == pytest.approx(tested)
    halves = pretrained.further_faces(ferplus, whole)
    names = [{Path(source).name for source in half.sources} for half in halves]
    assert [len(half) for half in names] == [rows[0]["best"]["further"]] * 2
    assert not names[0] & names[1]
    trained = {Path(row["source"]).name for row in RunFolder(tmp_path / CELL.name()).samples()}
    assert not trained & (names[0] | names[1])
    assert rows[2]["before"] == rows[0]["before"]
    ledger = (tmp_path / Cell("answers", *CELL[1:]).name() / "ledger.csv").read_text()
    assert ledger.count(",decide\n") == 4
    assert rows[1]["passes"] == 2 * rows[0]["passes"]
    shown = pretrained.comparison([row | {"options": ""} for row in rows], "symmetric:0.2")
    assert [*map(shown.count, ("| early stopping |", "| none |", "| answers |"))] == [1, 2, 2]
