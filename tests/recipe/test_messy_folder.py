"""From a messy folder to a repaired one, by commands alone."""

import csv
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from unmuddle.cli import main
from unmuddle.recipe.data import load_data


def command(text: str) -> None:
    assert main(text.split()) == 0


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def messy(root: Path, chance: random.Random) -> dict[str, str]:
    """Drawn faces under classes of which 15 % are wrong; the right class of each file by its name.

    PNG, WebP and JPEG, some of them turned as phones store them; 20 duplicates, 10 images scaled
    and compressed again, 5 files that are no images.
    """
    splits, truth = load_data("synthetic:3000"), dict[str, str]()
    images, labels = splits.train.images, splits.train.labels.tolist()
    for i, label in enumerate(labels):
        given = label
        while given == label and i % 20 in (3, 9, 15):
            given = chance.randrange(7)
        image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        path = root / splits.classes[given] / f"{i}.{('png', 'webp', 'jpg')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if i % 15 == 2:
            image, exif[0x112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(path, exif=exif, quality=95)
        truth[path.name] = splits.classes[label]
    for path in chance.sample(sorted(root.rglob("*.*")), 20):
        copy = root / chance.choice(splits.classes) / f"copy-{path.name}"
        shutil.copy(path, copy)
        truth[copy.name] = truth[path.name]
    for path in chance.sample(sorted(root.rglob("[0-9]*.png")), 10):
        copy = path.with_name(f"near-{path.stem}.jpg")
        Image.open(path).resize((44, 44)).save(copy, quality=70)
        truth[copy.name] = truth[path.name]
    for name in splits.classes[:5]:
        (root / name / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return truth


def review(suspects: Path, truth: dict[str, str]) -> None:
    """Answer every row as a person would who knows the right class."""
    rows = read(suspects)
    for row in rows:
        right = truth[Path(row["source"]).name]
        answers = {row["label"]: "reject", row["suggested"]: "accept"}
        row["decision"] = answers.get(right, f"to {right}")
    with suspects.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.slow
def test_flipped_labels_are_found_repaired_and_kept(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    truth = messy(Path("faces"), random.Random(0))
    before = {path: path.read_bytes() for path in Path("faces").rglob("*.*")}
    flipped = {p.name for p in before if truth.get(p.name, p.parent.name) != p.parent.name}
    assert len(flipped) > 450

    command("train --data folder:faces --skip_unreadable --out run")
    kinds = [copy["likeness"] for copy in read(Path("run/duplicates.csv"))]
    assert kinds.count("exact") == 40
    assert kinds.count("near") >= 16
    assert len(read(Path("run/left_out.csv"))) == 5
    fifth = len(truth) // 5
    command(f"audit --run run --limit {fifth}")
    review(Path("run/audit/suspects.csv"), truth)
    command("repair --data folder:faces --labels run/audit/suspects.csv --out repaired")
    assert {path: path.read_bytes() for path in Path("faces").rglob("*.*")} == before
    rows = read(Path("repaired/manifest.csv"))
    repaired = [
        Path(r["source"]).name
        for r in rows
        if r["new_label"] == truth[Path(r["source"]).name] != r["label"]
    ]
    assert {*repaired} <= flipped
    assert len(repaired) >= 0.95 * len(flipped)

    decided = [row for row in read(Path("run/audit/suspects.csv")) if row["decision"]]
    for row in decided[:3]:
        Path(row["source"]).unlink()
    for shade in (90, 180):
        Image.new("RGB", (60, 50), (shade, 20, 30)).save(f"faces/fear/added{shade}.png")
    Path("faces").rename("moved")
    capsys.readouterr()
    labels = "--labels run/audit/suspects.csv --skip_unreadable"
    command(f"train --data folder:moved {labels} --seed 7 --parts none --epochs 1 --out again")
    shown = capsys.readouterr().out
    assert f"{fifth - 3} decisions (" in shown
    assert "decision, image that is not there any more, or has changed: 3" in shown
