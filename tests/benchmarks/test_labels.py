"""The comparison with cleanlab: its figures by hand, its cells from training to a row."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import pages
from benchmarks.studies import label_figures, label_tables, labels, runs
from benchmarks.studies.label_figures import Problem
from benchmarks.studies.labels import Cell
from tests.helpers.layouts import make_ferplus
from tests.helpers.networks import tiny
from unmuddle.cli import main
from unmuddle.recipe.data import load_data
from unmuddle.uerm import Distribution, fit_noise

TINY = {"backbone": "tests.helpers.networks:tiny", "epochs": 1, "batch_size": 4, "image_size": 16}


def test_the_page_is_what_the_rows_say() -> None:
    rows = runs.read_results(labels.RESULTS)
    for name, text in label_tables.SECTIONS.items():
        assert pages.section("labels.md", name) == text(rows)


def test_every_row_is_of_a_cell() -> None:
    names = [cell.name() for cell in labels.cells()]
    assert len(set(names)) == len(names) == 3 * (4 + 3 + 3)
    assert {row["name"] for row in runs.read_results(labels.RESULTS)} <= {*names, "analysis"}


def problem(n: int = 200) -> tuple[Problem, Tensor]:
    """A tenth of the labels is wrong, and predicted right."""
    truth = torch.arange(n) % 4
    given = torch.where(torch.arange(n) < n // 10, (truth + 1) % 4, truth)
    p = 0.8 * torch.eye(4)[truth] + 0.05
    return Problem(given, truth, [f"{i}.png" for i in range(n)], tuple("abcd")), p


def test_figures_by_hand() -> None:
    known, p = problem()
    wrong = known.given != known.truth
    assert label_figures.ranking(known, wrong.float()) == 1
    assert label_figures.ranking(known._replace(truth=known.given), wrong.float()) is None
    half_right = known.given.clone()
    half_right[:10], half_right[10:20] = known.truth[:10], (known.truth[10:20] + 2) % 4
    assert label_figures.repair(known, half_right) == pytest.approx(
        {"after": 0.95, "precision": 0.5, "changed": 0.1}
    )
    among = torch.arange(200) < 15
    assert label_figures.repair(known, half_right, among)["precision"] == pytest.approx(2 / 3)
    assert label_figures.repair(known, known.given)["precision"] is None
    found = label_figures.of_cleanlab(known, p)
    assert found["rankings"].keys() == label_figures.SCORES.keys()
    assert all(ranking == pytest.approx(1) for ranking in found["rankings"].values())
    assert found["repairs"]["predicted_neq_given"]["after"] == 1


def test_every_approach_finds_what_is_plain() -> None:
    known, p = problem()
    noise = 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    predictions, features = Distribution(p), torch.eye(4)[known.truth] + noise
    found = label_figures.tries(known, predictions, features)
    assert len(found) == 8
    for name, (doubt, repaired) in found.items():
        assert label_figures.ranking(known, doubt) == pytest.approx(1), name
        assert label_figures.repair(known, repaired)["after"] == 1, name


def test_maximum_likelihood_finds_the_rate_of_noise_that_was_not_fitted() -> None:
    g = torch.Generator().manual_seed(0)
    q = (5 * torch.randn(4000, 4, generator=g)).softmax(1)
    truth = torch.multinomial(q, 1, generator=g)[:, 0]
    other = (truth + torch.randint(1, 4, (4000,), generator=g)) % 4
    given = torch.where(torch.rand(4000, generator=g) < 0.2, other, truth)
    p = Distribution((q.log() / 2).softmax(1))
    found = label_figures.most_likely(p, given, fit_noise(p, given, 4))
    assert float(found.rate) == pytest.approx(0.2, abs=0.02)
    assert float(found.sharpness) == pytest.approx(2, rel=0.1)


def test_figures_after_answers_are_of_the_labels_that_were_not_verified() -> None:
    known, p = problem()
    p[:20] = 0.05 + 0.8 * torch.eye(4)[known.given[:20]]  # no wrong label is contradicted
    found = label_figures.verified_at_random(known, Distribution(p), 150, seed=0)
    assert found["asked"] == 150
    top = label_figures.verified_from_the_top(known, Distribution(p), 50)
    assert top["asked"] == 50
    for row in (found, top):
        assert row["repair"]["after"] >= 0.9
        assert row["repair"]["changed"] <= 1 - row["asked"] / 200
    draws = [label_figures.verified_at_random(known, Distribution(p), 40, seed=s) for s in range(5)]
    assert len({row["repair"]["after"] for row in draws}) > 1, "another seed asks for other labels"


@pytest.mark.filterwarnings(
    "ignore:May not flag", "ignore:The least populated class", "ignore:Number of classes"
)
def test_cells_from_training_to_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_run(options: list[str], path: Path) -> None:
        assert main(["train", "--quiet", *options, f"--out={path}"]) == 0

    monkeypatch.setattr(labels, "SETTINGS", TINY)
    monkeypatch.setattr(labels, "FOLDS", 2)
    monkeypatch.setattr(label_figures, "ANSWERS", (4, 8))
    monkeypatch.setattr(runs, "train_run", train_run)
    weights = tmp_path / "weights.pt"
    ferplus = make_ferplus(tmp_path / "faces", each=12)
    torch.save(tiny().state_dict(), weights)
    rows = {
        kind: labels.run_cell(Cell("symmetric", kind, 0), ferplus, weights, tmp_path, "abc")
        for kind in labels.KINDS
    }
    assert len({row["before"] for row in rows.values()}) == 1
    assert 0 < rows["uerm"]["verified_4"]["ranking"] <= 1
    assert {row["commit"] for row in rows.values()} == {"abc"}
    everything = [
        {"name": kind, "noise": "symmetric", "kind": kind, "seed": 0} | row
        for kind, row in rows.items()
    ]
    monkeypatch.setattr(label_tables, "ANSWERS", (4, 8))
    for name in ("ranking", "repair", "model", "classes", "cost"):
        assert " ± " not in label_tables.SECTIONS[name](everything), "of one seed"
        assert label_tables.SECTIONS[name](everything) != label_tables.SECTIONS[name]([])
    assert rows["cleanlab"]["rankings"] != rows["folds"]["rankings"]
    assert len([*(tmp_path / "symmetric_folds_0").glob("run*")]) == 2
    clean = labels.noisy_labels("none", 0, ferplus, tmp_path)
    assert torch.equal(clean.given, clean.truth)


def test_held_out_faces_are_left_out(tmp_path: Path) -> None:
    ferplus = make_ferplus(tmp_path / "faces")
    everything = load_data(f"ferplus:{ferplus}").train
    sources = [everything.source(i) for i in range(len(everything))]
    fewer = labels.without(ferplus, set(sources[::2]), tmp_path / "fewer")
    kept = load_data(f"ferplus:{fewer}").train
    assert [Path(kept.source(i)).name for i in range(len(kept))] == [
        Path(source).name for source in sources[1::2]
    ]
