"""A run's network, applied again: figures by hand, intervals, folders of images."""

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.layouts import make_folder, save_image, truncate
from unmuddle.cli import main
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.metrics import measure
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.tables import read_table
from unmuddle.recipe.train import train
from unmuddle.recipe.trained import evaluate_run, predict_folder

PROBABILITIES = torch.tensor(
    [[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.4, 0.6, 0.0]]
)
LABELS = torch.tensor([0, 0, 1, 1, 1])


def test_figures_by_hand() -> None:
    found = measure(PROBABILITIES, LABELS, ("a", "b", "c"))
    assert found["accuracy"]["value"] == pytest.approx(4 / 5)
    assert found["mean_class_accuracy"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    # Each confidence is alone in its bin: the mean of |right - confidence|, where two share 0.6.
    assert found["calibration_error"]["value"] == pytest.approx(
        (0.1 + 0.3 + 0.2 + 2 * abs(0.5 - 0.6)) / 5
    )
    a, b, c = (found["classes"][name] for name in "abc")
    assert a == pytest.approx({"samples": 2, "precision": 2 / 3, "recall": 1, "f1": 4 / 5})
    assert b == pytest.approx({"samples": 3, "precision": 1, "recall": 2 / 3, "f1": 4 / 5})
    assert c == {"samples": 0, "precision": None, "recall": None, "f1": None}
    assert found["confusion"] == [[2, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert json.loads(json.dumps(found)) == found


def test_intervals_are_those_of_a_binomial_and_follow_the_seed() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    probabilities = torch.eye(2)[(torch.arange(1000) % 5 == 0).long()]  # 80 % right
    accuracy = measure(probabilities, labels, "ab")["accuracy"]
    deviation = math.sqrt(0.8 * 0.2 / 1000)
    assert accuracy["low"] == pytest.approx(0.8 - 1.96 * deviation, abs=0.4 * deviation)
    assert accuracy["high"] == pytest.approx(0.8 + 1.96 * deviation, abs=0.4 * deviation)
    assert measure(probabilities, labels, "ab")["accuracy"] == accuracy
    assert measure(probabilities, labels, "ab", seed=1)["accuracy"] != accuracy


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    make_folder(root / "data")
    config = TrainConfig(
        data=f"folder:{root / 'data'}", backbone="tests.helpers.networks:tiny", image_size=48, epochs=2,
        batch_size=8, noise="symmetric:0.2", out=str(root / "run"),
    )  # fmt: skip
    return train(config)


def test_a_run_is_scored_as_its_training_did(folder_run: Path) -> None:
    summary = json.loads((folder_run / "summary.json").read_text())
    found = evaluate_run(folder_run)
    assert [*found["classes"]] == ["calm", "glad"]
    assert found["confusion"] == summary["test"]["confusion"]
    last = evaluate_run(folder_run, epoch="last")
    assert last["confusion"] == summary["test_last_epoch"]["confusion"]
    val = evaluate_run(folder_run, split="val")
    assert val["accuracy"]["value"] == summary["val_accuracy"]
    confusion = evaluate_run(folder_run, split="train")["confusion"]
    assert [*map(sum, confusion)] == [12, 12], "labels before the noise"


def test_the_command_prints_and_writes(folder_run: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "figures.json"
    assert main(["evaluate", "--run", str(folder_run), "--split", "val", "--json", str(path)]) == 0
    assert "mean class accuracy" in capsys.readouterr().out
    assert set(json.loads(path.read_text())["classes"]) == {"calm", "glad"}


def test_images_without_labels_are_classified(folder_run: Path, tmp_path: Path, capsys) -> None:
    for number in range(5):
        save_image(tmp_path / "new" / "deep" / f"{number}.png", seed=number, size=60)
    out = tmp_path / "classes.csv"
    command = ["evaluate", "--run", str(folder_run), "--images", str(tmp_path / "new")]
    assert main([*command, "--out", str(out)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == [f"{number}.png" for number in range(5)]
    for row in rows:
        shares = {name: float(row[f"probability_{name}"]) for name in ("calm", "glad")}
        assert sum(shares.values()) == pytest.approx(1, abs=2e-6)
        assert row["predicted"] == max(shares, key=shares.get)
        assert float(row["confidence"]) == max(shares.values())
    assert main(command) == 0
    assert (folder_run / "predictions.csv").read_text() == out.read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_command_uses_the_weights_of_the_chosen_epoch(folder_run: Path, tmp_path) -> None:
    run, faces = shutil.copytree(folder_run, tmp_path / "run"), folder_run.parent / "data" / "test"
    weights = RunFolder(run).weights()
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0)  # swaps the two classes
    RunFolder(run).save_weights(weights, "last")
    confusion, classes, deployed = {}, {}, {}
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    for epoch in ("best", "last"):
        command, out = ["--run", str(run), "--epoch", epoch], tmp_path / epoch
        figures, table, file = (out.with_suffix(end) for end in (".json", ".csv", ".pt2"))
        assert main(["evaluate", *command, "--json", str(figures)]) == 0
        assert main(["evaluate", *command, "--images", str(faces), "--out", str(table)]) == 0
        assert main(["export", *command, "--out", str(file)]) == 0
        confusion[epoch] = json.loads(figures.read_text())["confusion"]
        classes[epoch] = [row["predicted"] for _, row in read_table(table, ["predicted"])]
        deployed[epoch] = torch.export.load(file).module()(images)
    assert confusion["last"] == [row[::-1] for row in confusion["best"]] != confusion["best"]
    assert all(a != b for a, b in zip(classes["best"], classes["last"], strict=True))
    assert torch.allclose(deployed["last"], deployed["best"].flip(1), atol=1e-6)


def test_classes_of_any_name_have_a_column_of_their_own(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", each=4)
    for part in data.iterdir():
        (part / "calm").rename(part / "predicted")
        (part / "glad").rename(part / "confidence")
        for number in range(4):
            save_image(part / "file" / f"{number}.png", seed=number)
    config = TrainConfig(
        data=f"folder:{data}", backbone="tests.helpers.networks:tiny", image_size=48, epochs=1, batch_size=8,
        parts="none", out=str(tmp_path / "run"),
    )  # fmt: skip
    out = tmp_path / "predictions.csv"
    predict_folder(train(config), data / "test", out)
    with out.open() as file:
        columns = next(csv.reader(file))
    assert len(set(columns)) == len(columns) == 6
    page = " ".join((ROOT / "docs/pages/recipe.md").read_text().split())
    (told,) = re.findall(
        r"predictions.csv`, or `--out FILE`, with the columns (.*?) for each", page
    )
    named = [name.replace("CLASS", "file") for name in re.findall(r"`(\w+)`", told)]
    assert named == [*columns[:3], "probability_file"]


def test_what_is_no_image_is_named_and_what_cannot_be_read_is_skipped_if_asked(
    folder_run: Path, tmp_path: Path, capsys
) -> None:
    new = tmp_path / "new"
    for name in ("0.png", "1.gif", "2.jpg"):
        save_image(new / name, seed=0)
    (new / "notes.txt").write_text("glad?")
    command = ["evaluate", "--run", str(folder_run), "--images", str(new)]
    command += ["--out", str(tmp_path / "out.csv")]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("3 images: ")
    assert shown.err == f"left out:\n  file that is not an image: 1\n    {new / 'notes.txt'}\n"
    truncate(new / "2.jpg")
    assert main(command) == 2
    assert "--skip_unreadable leaves out unreadable images" in capsys.readouterr().err
    assert main([*command, "--skip_unreadable"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("2 images: ")
    assert f"unreadable or truncated image: 1\n    {new / '2.jpg'}" in shown.err
    rows = (tmp_path / "out.csv").read_text().splitlines()
    names = [Path(row.split(",")[0]).name for row in rows]
    assert names == ["file", "0.png", "1.gif"]


def test_a_messy_folder_from_training_to_audit(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    calm = make_folder(tmp_path / "faces", each=8) / "train" / "calm"
    for number in range(4):
        (calm / f"{number}.txt").write_text("calm")
    truncate(calm / "03.png")
    (calm / os.fsdecode(b"caf\xe9.md")).write_text("calm")
    command = "train --data folder:faces --backbone tests.helpers.networks:tiny --image_size 48 --epochs 1 "
    command += "--batch_size 8 --out run"
    assert main(command.split()) == 2
    assert "unreadable or truncated image: 1" in capsys.readouterr().err
    assert main([*command.split(), "--skip_unreadable"]) == 0
    shown = capsys.readouterr().out
    assert "file that is not an image: 5\n    faces/train/calm/0.txt" in shown
    assert "... and 2 more" in shown
    assert "all of them: run/left_out.csv" in shown
    with (tmp_path / "run/left_out.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    names = [*(f"{n}.txt" for n in range(4)), r"caf\udce9.md"]
    unused = [("file that is not an image", f"faces/train/calm/{name}") for name in names]
    assert rows == [*unused, ("unreadable or truncated image", "faces/train/calm/03.png")]
    for later in ("audit --run run", "evaluate --run run --split train"):
        assert main(later.split()) == 0
        assert "file that is not an image: 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--run nowhere: is not there", ["--run", "nowhere"]),
        ("has the classes 0, 1, 2", ["--run", "RUN", "--data", "digits"]),
        ("--images nowhere: no such folder", ["--run", "RUN", "--images", "nowhere"]),
        ("unreadable or truncated image: 1", ["--run", "RUN", "--images", "broken"]),
        ("--out: belongs to --images", ["--run", "RUN", "--out", "x.csv"]),
        ("no --data, --split or --json", ["--run", "RUN", "--images", "broken", "--json", "x"]),
        ("no --data, --split or --json", ["--run", "RUN", "--images", "broken", "--split", "val"]),
        ("--json: nowhere/x.json: expected a file", ["--run", "RUN", "--json", "nowhere/x.json"]),
        ("--out: .: expected a file", ["--run", "RUN", "--images", "broken", "--out", "."]),
        ("split", ["--run", "RUN", "--split", "all"]),
        ("unknown data set", ["--run", "RUN", "--data", "faces"]),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(
    message: str, arguments: list[str], folder_run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save_image(Path("broken/0.png"), seed=0)
    truncate(Path("broken/0.png"))
    before = sorted([*Path().rglob("*"), *folder_run.rglob("*")])
    assert main(["evaluate", *(str(folder_run) if a == "RUN" else a for a in arguments)]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out
    assert sorted([*Path().rglob("*"), *folder_run.rglob("*")]) == before


@pytest.mark.parametrize("broken", ["summary.json", "model.safetensors"])
def test_half_a_run_is_told(broken: str, folder_run: Path, tmp_path: Path, capsys) -> None:
    for file in folder_run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / broken).write_bytes(b"{}")
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert f"{broken}: is not readable" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_told(folder_run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_bytes((folder_run / "config.yaml").read_bytes())
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert f"was stopped; unmuddle train --resume {tmp_path} goes on" in capsys.readouterr().err


def test_images_that_the_run_was_trained_on_are_not_scored(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    for name in ("calm", "glad"):
        for number in range(20):
            save_image(data / name / f"{number:02}.png", seed=number, size=16)
    config = TrainConfig(
        data=f"folder:{data}", backbone="tests.helpers.networks:tiny", image_size=48, epochs=1,
        batch_size=8, parts="none", out=str(tmp_path / "run"),
    )  # fmt: skip
    run = train(config)
    evaluate_run(run)
    for name in ("calm", "glad"):
        (data / name / "00.png").unlink()
    with pytest.raises(UsageError, match="was trained on .* of these 4 images; files were added"):
        evaluate_run(run)
    evaluate_run(run, split="train")
