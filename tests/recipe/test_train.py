"""The recipe as a whole, on data small enough for seconds."""

import csv
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console

from tests.helpers import thinned
from tests.helpers.layouts import (
    make_affectnet,
    make_affectnet_annotations,
    make_fer2013,
    make_ferplus,
    make_folder,
    make_rafdb,
    save_image,
)
from tests.helpers.networks import Dice
from tests.helpers.processes import unmuddle
from tests.helpers.trainings import built
from unmuddle.recipe.backbones import build_backbone
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages, load_data
from unmuddle.recipe.loaders import training_loader
from unmuddle.recipe.train import train, train_epochs, training_step
from unmuddle.recipe.trained import evaluate_run, load_trained
from unmuddle.supcon import SupConLoss

EVERYTHING = "supcon,arm,uerm"
QUICK = {"data": "digits", "backbone": "tests.helpers.networks:tiny", "batch_size": 64, "lr": 1e-2}


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "full"
    config = TrainConfig(
        **QUICK, parts=EVERYTHING, epochs=12, noise="symmetric:0.2", out=str(run)
    )  # fmt: skip
    return train(config)


def test_labels_of_a_run_are_those_of_the_next(full_run: Path, tmp_path: Path) -> None:
    labels, options = full_run / "relabeled.csv", {**QUICK, "parts": "none", "epochs": 1}
    options |= {"noise": "symmetric:0.2", "out": str(tmp_path / "again")}
    again = train(TrainConfig(**options, labels=str(labels)))
    repaired = [summary(run)["relabeling"]["right_after"] for run in (full_run, again)]
    assert repaired[0] == repaired[1]
    assert (again / "relabeled.csv").read_text() == labels.read_text()


def test_the_full_method_learns_and_repairs_labels(full_run: Path) -> None:
    found = summary(full_run)
    assert found["status"] == "finished"
    assert found["test"]["accuracy"] > 0.7  # one in ten by guessing
    scored = found["relabeling"]
    assert scored["right_after"] > scored["right_before"] + 0.05
    assert scored["precision"] > 0.7


def test_summary_agrees_with_itself_and_the_metrics(full_run: Path) -> None:
    found, epochs = summary(full_run), metrics(full_run)
    confusion = torch.tensor(found["test"]["confusion"])
    assert found["test"]["accuracy"] == pytest.approx(confusion.trace() / confusion.sum())
    assert confusion.sum() == 360
    assert [entry["epoch"] for entry in epochs] == list(range(1, 13))
    best = max(epochs, key=lambda entry: entry["val_accuracy"])
    assert found["best_epoch"] == best["epoch"]
    assert epochs[-1]["labels_right"] == found["relabeling"]["right_after"]
    assert all(entry["relabeled"] == 0 for entry in epochs[:4])  # warm-up


def test_best_and_last_weights_are_tested(tmp_path: Path) -> None:
    run, weights = tmp_path / "run", []
    training = built(TrainConfig(**QUICK, epochs=3, parts="none", out=str(run)))
    score = training.score

    def ever_worse(loader):
        weights.append(next(training.average.module.parameters()).clone())
        return score(loader)._replace(accuracy=1 / len(weights))

    training.score = ever_worse
    train_epochs(training)
    validated, (last, best) = weights[:3], weights[3:]
    assert torch.equal(last, validated[2])
    assert torch.equal(best, validated[0])
    assert not torch.equal(best, last)
    for epoch, tested in (("last", last), ("best", best)):
        assert torch.equal(next(load_trained(run, epoch).model.parameters()), tested)
    found = summary(run)
    assert found["best_epoch"] == 1
    assert (found["test_last_epoch"]["accuracy"], found["test"]["accuracy"]) == (1 / 4, 1 / 5)


def test_ledger_csv_replays_to_the_labels_that_were_scored(full_run: Path) -> None:
    from unmuddle.recipe.data.noise import symmetric_noise

    truth = load_data("digits").train.labels
    labels = symmetric_noise(truth, 10, 0.2, seed=0)
    assert (labels == truth).double().mean() == summary(full_run)["relabeling"]["right_before"]
    with (full_run / "ledger.csv").open() as file:
        for event in csv.DictReader(file):
            assert labels[int(event["sample"])] == int(event["old"])
            labels[int(event["sample"])] = int(event["new"])
    assert (labels == truth).double().mean() == summary(full_run)["relabeling"]["right_after"]


def test_saved_config_and_weights_can_be_used_again(full_run: Path) -> None:
    config = TrainConfig(**yaml.safe_load((full_run / "config.yaml").read_text()))
    assert config == TrainConfig(
        **QUICK, parts=EVERYTHING, epochs=12, noise="symmetric:0.2", out=str(full_run)
    )
    state = safetensors.torch.load_file(full_run / "model.safetensors")
    assert "arm.weight" in state
    assert "projection.0.weight" in state


def test_samples_csv_tells_which_label_each_id_was_given(full_run: Path) -> None:
    with (full_run / "samples.csv").open() as file:
        given = [int(row["label"]) for row in csv.DictReader(file)]
    with (full_run / "ledger.csv").open() as file:
        first_old = {int(e["sample"]): int(e["old"]) for e in reversed(list(csv.DictReader(file)))}
    assert first_old
    assert all(given[sample] == old for sample, old in first_old.items())


def test_weights_of_a_run_start_another(full_run: Path, tmp_path: Path) -> None:
    weights = full_run / "model.safetensors"
    options = QUICK | {"weights": str(weights), "parts": "none", "lr": 1e-9, "weight_decay": 0.0}
    shown = io.StringIO()
    run = train(TrainConfig(**options, epochs=1, out=str(tmp_path / "run")), Console(file=shown))
    unused = [n for n in safetensors.torch.load_file(weights) if not n.startswith("backbone.")]
    assert f"{len(unused)} tensors are not the backbone's and are not used" in shown.getvalue()
    first, second = (
        safetensors.torch.load_file(path) for path in (weights, run / "model.safetensors")
    )
    torch.testing.assert_close(second["backbone.0.weight"], first["backbone.0.weight"])


def test_fine_tuning_has_its_own_rates_and_a_frozen_beginning(tmp_path: Path) -> None:
    def states(**options: Any) -> list[dict[str, torch.Tensor]]:
        """Weights after each epoch."""
        training, found = built(TrainConfig(**QUICK, parts="none", average=0.0, **options)), []
        score = training.score

        def noted(loader):
            state = training.average.module.state_dict()
            found.append({name: value.clone() for name, value in state.items()})
            return score(loader)

        training.score = noted
        train_epochs(training)
        return found[: training.config.epochs]

    first, second, third = states(epochs=3, freeze_epochs=2, out=str(tmp_path / "frozen"))
    backbone = [name for name in first if name.startswith("backbone.")]
    assert all(torch.equal(first[name], second[name]) for name in backbone)
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert not any(torch.equal(second[n], third[n]) for n in backbone if "num_batches" not in n)

    first, second = states(epochs=2, lr_backbone=0.0, out=str(tmp_path / "still"))
    assert torch.equal(first["backbone.0.weight"], second["backbone.0.weight"])
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])


def test_a_run_on_pretrained_weights_is_scored_with_the_pixels_that_they_expect(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "weights.safetensors"
    state = build_backbone("mobilefacenet", 48).network.state_dict()
    safetensors.torch.save_file(state, weights)
    options = {"data": f"folder:{make_folder(tmp_path / 'data')}", "backbone": "mobilefacenet"}
    config = TrainConfig(
        **options, image_size=48, epochs=1, batch_size=8, parts="none", weights=str(weights),
        label_smoothing=0.1, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert config.backbone_rate() == config.lr / 10
    run = train(config)
    saved = safetensors.torch.load_file(run / "model.safetensors")
    assert saved["standardize.mean"].tolist() == [0.5] * 3
    found = evaluate_run(run)
    assert found["confusion"] == summary(run)["test"]["confusion"]


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 2, "noise": "symmetric:0.2"}
    first, again, other = (
        train(TrainConfig(**options, seed=seed, out=str(tmp_path / name)))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )

    def weights(run: Path) -> dict:
        return safetensors.torch.load_file(run / "model.safetensors")

    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(first).items())
    assert not torch.equal(weights(first)["classifier.weight"], weights(other)["classifier.weight"])


def test_a_random_layer_draws_anew_each_step_and_by_the_seed(tmp_path: Path) -> None:
    network = "tests.helpers.networks:tiny_with_dice"
    options = QUICK | {"backbone": network, "parts": "none", "epochs": 2}
    rolls = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        Dice.rolled.clear()
        train(TrainConfig(**options, seed=seed, out=str(tmp_path / name)))
        rolls.append(tuple(Dice.rolled))
    assert len(set(rolls[0])) == len(rolls[0]) == 2 * (1077 // 64)
    assert rolls[1] == rolls[0]
    assert not set(rolls[2]) & set(rolls[0])


def test_a_compiled_network_trains_to_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    compiled = []

    def compile_without_changes(call, **options):
        compiled.append(call.__self__)
        return torch._dynamo.optimize("eager")(call)

    monkeypatch.setattr(torch, "compile", compile_without_changes)
    plain, fast = (
        train(
            TrainConfig(**QUICK, parts=EVERYTHING, epochs=1, compile=flag, out=str(tmp_path / name))
        )
        for name, flag in (("plain", False), ("fast", True))
    )
    assert [type(module).__name__ for module in compiled] == ["Classifier"]
    names = ("model.safetensors", "ledger.csv")
    assert [(plain / name).read_bytes() for name in names] == [
        (fast / name).read_bytes() for name in names
    ]


@pytest.mark.parametrize("parts", ["none", "supcon", "arm", "published_arm", "uerm"])
def test_each_part_can_stand_alone(parts: str, tmp_path: Path) -> None:
    run = train(TrainConfig(**QUICK, epochs=1, parts=parts, out=str(tmp_path / "run")))
    state = safetensors.torch.load_file(run / "model.safetensors")
    assert ("arm.weight" in state) == ("arm" in parts)
    assert ("projection.0.weight" in state) == (parts == "supcon")
    assert "test" in summary(run)


@pytest.mark.parametrize(("parts", "views", "rows"), [("none", 3, 192), ("supcon", 1, 64)])
def test_a_batch_has_as_many_views_as_asked_for(
    parts: str, views: int, rows: int, tmp_path: Path
) -> None:
    training = built(TrainConfig(**QUICK, parts=parts, views=views, out=str(tmp_path / "run")))
    images, _, ids = next(iter(training.loaders.train))
    assert len(training.augment(images, 0)) == training_step(training, images, ids, 0).views == rows


def test_images_are_augmented_as_strongly_as_asked_for(tmp_path: Path) -> None:
    views = []
    for strength in (0.0, 0.25, 1.0):
        training = built(
            TrainConfig(**QUICK, parts="none", augment=strength, out=str(tmp_path / "run"))
        )
        images = training.data.splits.train.images[:64]
        views.append(training.augment(images, 0))
    changes = [float((view - views[0]).abs().mean()) for view in views]
    assert changes[0] < changes[1] < changes[2] / 2


def test_votes_are_trained_on_in_place_of_labels(tmp_path: Path) -> None:
    faces = make_ferplus(tmp_path / "faces", each=4)
    options = QUICK | {"data": f"ferplus:{faces}", "parts": "supcon", "batch_size": 8, "epochs": 1}

    def weights(targets: str, *, other_labels: bool) -> torch.Tensor:
        training = built(TrainConfig(**options, targets=targets, out=str(tmp_path / targets)))
        if other_labels:
            labels = training.uerm.ledger.original_labels
            training.uerm.ledger.decide(torch.arange(len(labels)), labels.roll(1))
        for number, (images, _, ids) in enumerate(training.loaders.train):
            training_step(training, images, ids, number)
        return training.model.backbone.get_parameter("0.weight")

    for targets, differ in (("votes", False), ("labels", True)):
        first, other = (weights(targets, other_labels=flag) for flag in (False, True))
        assert torch.equal(first, other) != differ


def test_the_contrastive_loss_heeds_labels_as_far_as_they_are_trusted(tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(SupConLoss):
        def forward(self, features, labels, *, weight):
            seen.append((labels, weight))
            return super().forward(features, labels, weight=weight)

    options = QUICK | {"parts": "supcon,uerm", "noise": "symmetric:0.2", "warmup": 0}
    training = built(TrainConfig(**options, epochs=2, out=str(tmp_path / "run")))
    training.supcon = Watched(training.config.temperature)
    train_epochs(training)
    assert len(seen) == 2 * (1077 // 64)
    for labels, weight in seen:
        assert ((labels > 0).sum(1) == (weight > 0)).all()
        torch.testing.assert_close(labels.sum(1), weight)
    trust = [float(weight.min()) for _, weight in seen]
    assert min(trust[: len(seen) // 2]) == 1
    assert max(trust[len(seen) // 2 :]) < 1


def test_the_corrected_loss_leaves_no_sample_out(tmp_path: Path) -> None:
    for number, relabel_loss in enumerate(("weighted", "corrected")):
        training = built(
            TrainConfig(
                **QUICK, parts="uerm", relabel_loss=relabel_loss, out=str(tmp_path / relabel_loss)
            )
        )
        images, _, ids = next(iter(training.loaders.train))
        training.uerm.weight.zero_()  # as if all samples were relabeled
        training.uerm.uncertainty.fill_(1)
        training.uerm.transition.fill_(0.1)  # no label says anything
        loss = training_step(training, images, ids, 0).loss
        torch.testing.assert_close(loss, number * torch.tensor(10.0).log())


def test_uerm_variants_and_worker_processes(tmp_path: Path) -> None:
    run = train(
        TrainConfig(
            **QUICK, parts="supcon,published_arm,uerm", epochs=2, warmup=0, workers=1,
            relabel_estimator="attention", relabel_policy="scn", out=str(tmp_path / "run"),
        )
    )  # fmt: skip
    with (run / "ledger.csv").open() as file:
        assert {row["rule"] for row in csv.DictReader(file)} == {"scn"}


@pytest.mark.parametrize(
    ("name", "make", "tested"),
    [
        ("ferplus", make_ferplus, 12),
        ("folder", make_folder, 24),
        ("rafdb", make_rafdb, 70),
        ("affectnet", make_affectnet, 80),
        ("affectnet7", make_affectnet_annotations, 70),
        ("fer2013", make_fer2013, 21),
    ],
)
def test_every_layout_trains(name: str, make, tested: int, tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    options = QUICK | {"data": f"{name}:{root}", "batch_size": 4, "image_size": 48}
    run = train(TrainConfig(**options, epochs=1, out=str(tmp_path / "run")))
    assert torch.tensor(summary(run)["test"]["confusion"]).sum() == tested
    assert not (run / "duplicates.csv").exists()


def test_a_class_that_is_not_tested_is_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    shutil.rmtree(root / "test" / "glad")
    options = QUICK | {"data": f"folder:{root}", "batch_size": 4, "image_size": 48}
    told = io.StringIO()
    train(TrainConfig(**options, epochs=1, out=str(tmp_path / "run")), Console(file=told))
    assert "glad: has no test image" in told.getvalue()
    assert "calm: has no" not in told.getvalue()
    assert "validation image\n" not in told.getvalue()


def test_a_balanced_sampler_shows_rare_classes_as_often() -> None:
    labels = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    data = LabeledImages(torch.zeros(1000, 3, 8, 8, dtype=torch.uint8), labels)
    loader = training_loader(
        data, TrainConfig(sampler="balanced", batch_size=50), 2, torch.Generator()
    )
    seen = torch.cat([batch[1] for batch in loader])
    assert len(seen) == 1000
    # 1,000 draws of probability 1/2: four standard deviations are 0.063.
    assert abs(seen.double().mean() - 0.5) < 0.063


def test_duplicates_are_told_and_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    save_image(root / "test" / "calm" / "leak.png", seed=3)  # of train/calm/03.png
    told = io.StringIO()
    run = train(
        TrainConfig(
            **QUICK | {"data": f"folder:{root}", "batch_size": 8, "image_size": 48}, epochs=1,
            sampler="balanced", out=str(tmp_path / "run"),
        ),
        Console(file=told),
    )  # fmt: skip
    assert (
        "1 images occur more than once, 0 nearly, 1 of these groups in several splits"
        in told.getvalue()
    )
    with (run / "duplicates.csv").open() as file:
        assert [row["split"] for row in csv.DictReader(file)] == ["train", "test"]


@pytest.mark.parametrize("stop", thinned([signal.SIGTERM, signal.SIGINT], 2))
def test_a_stopped_run_leaves_a_readable_folder(stop: signal.Signals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    log, network = tmp_path / "log", "tests.helpers.networks:tiny"
    options = ["--data", "digits", "--epochs", "5000", "--backbone", network, "--out", str(run)]
    process = unmuddle(["train", *options], log)
    try:
        deadline = time.monotonic() + 240
        # Two: the checkpoint of the first epoch is there then.
        while not ((run / "metrics.jsonl").exists() and len(metrics(run)) >= 2):
            assert process.is_alive(), log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(process.pid, stop)
        process.join(120)
    finally:
        process.kill()
    assert process.exitcode == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert summary(run)["status"] == "interrupted"
    assert "test" not in summary(run)
    assert len(metrics(run)) >= 1
    assert safetensors.torch.load_file(run / "model.safetensors")
    assert "Training loss" in (run / "report.html").read_text()
    assert (run / "ledger.csv").read_text().startswith("event,sample")
    assert not list(run.glob("*.partial")) + list(run.glob(".*.partial"))
