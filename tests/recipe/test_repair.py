"""A folder is repaired into another one and stays as it is."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.layouts import save_image
from unmuddle.cli import main
from unmuddle.recipe.data import Splits, load_data
from unmuddle.recipe.data.files import Problems
from unmuddle.recipe.data.folder import read_folder
from unmuddle.recipe.decisions import Row, write_rows

CLASSES = ("calm", "glad", "sad")


@pytest.fixture(params=["plain", "split"])
def faces(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder in which each of three classes has images of the same names."""
    root = tmp_path / "faces"
    for number, split in enumerate(("train", "test") if request.param == "split" else ("",)):
        for shade, name in enumerate(CLASSES):
            for i in range(12):
                path = root / split / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (20 * i, 80 * shade, 100 * number)).save(path)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decide(path: Path, splits: Splits, decisions: dict[str, str]) -> None:
    """Write a file of decisions on images by `class/name`."""
    rows: list[Row] = []
    for name, part in splits.parts().items():
        for i in range(len(part)):
            decision = decisions.get("/".join(part.source(i).split("/")[-2:]), "")
            label = splits.classes[int(part.labels[i])]
            rows.append(Row(i, name, part.source(i), label, "glad", decision, part.content(i)))
    write_rows(path, rows)


def repair(faces: Path, tmp_path: Path, *options: str) -> int:
    arguments = ["--data", f"folder:{faces}", "--labels", str(tmp_path / "labels.csv"), *options]
    return main(["repair", *arguments, "--out", str(tmp_path / "repaired")])


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_are_put_where_they_belong(faces: Path, tmp_path: Path, capsys) -> None:
    splits, out = load_data(f"folder:{faces}", image_size=8), tmp_path / "repaired"
    decisions = {"sad/03.png": "accept", "calm/01.png": "to sad", "calm/02.png": "reject"}
    decide(tmp_path / "labels.csv", splits, decisions)
    before = tree(faces)
    assert repair(faces, tmp_path) == 0
    assert tree(faces) == before
    number = len(before) // 36  # of splits
    shown = capsys.readouterr().out
    assert f"{len(before)} images, {2 * number} of them in another class" in shown
    repaired = tree(out)
    repaired.pop("manifest.csv")
    expected = {
        name.replace("sad/03.png", "glad/03-from-sad.png").replace(
            "calm/01.png", "sad/01-from-calm.png"
        ): content
        for name, content in before.items()
    }
    assert repaired == expected
    for row in manifest(out):
        assert (out / row["target"]).read_bytes() == Path(row["source"]).read_bytes()
        assert Path(row["target"]).parent.name == row["new_label"]
        assert Path(row["source"]).parent.name == row["label"]
        end = "/".join(Path(row["source"]).parts[-2:])
        assert row["decided_by"] == ("person" if end in decisions else "")

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert repair(faces, tmp_path) == 0  # changes nothing
    assert "0 copied" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == times
    again = load_data(f"folder:{out}", image_size=8)
    assert sum(map(len, again.parts().values())) == len(before)

    decide(tmp_path / "labels.csv", splits, {"calm/01.png": "accept"})  # another decision
    capsys.readouterr()
    assert repair(faces, tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"removed from the copy:\n  image in no such place any more: {2 * number}\n" in shown
    assert f"{number} decisions used" in shown
    assert len(tree(out)) == len(before) + 1
    assert not [*out.rglob("03-from-sad.png")]


def test_a_class_of_one_image_is_repaired(tmp_path: Path) -> None:
    for name, count in (("a", 1), ("b", 2)):
        for i in range(count):
            (tmp_path / "faces" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (i, count, 0)).save(tmp_path / "faces" / name / f"{i}.png")
    splits = read_folder(tmp_path / "faces", 8, Problems())[0]
    row = Row(2, "", "", "b", "a", "accept", splits[""].content(2))
    write_rows(tmp_path / "labels.csv", [row])
    assert repair(tmp_path / "faces", tmp_path) == 0
    assert {*tree(tmp_path / "repaired")} == {"a/0.png", "a/1.png", "b/0.png", "manifest.csv"}


def test_no_two_images_take_one_place(tmp_path: Path) -> None:
    names = ("glad/03.png", "glad/03-from-sad.png", "sad/03.png", "calm/03.png", "sad/A.png", "glad/a.png",
             "sad/x.png", "glad/x.png/deep.png", "sad/deep/1.png", "calm/deep/1.png")  # fmt: skip
    for shade, name in enumerate(names):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * shade, 0, 0)).save(tmp_path / "faces" / name)
    part = read_folder(tmp_path / "faces", 8, Problems())[0][""]
    rows = [
        Row(i, "", part.source(i), CLASSES[label], "glad", "accept", part.content(i))
        for i, label in enumerate(part.labels.tolist())
        if CLASSES[label] != "glad"
    ]
    write_rows(tmp_path / "labels.csv", rows)
    for _ in range(2):  # the second repairs the same folder again
        assert repair(tmp_path / "faces", tmp_path) == 0
        found = tree(tmp_path / "repaired")
        found.pop("manifest.csv")
        assert sorted(found.values()) == sorted(tree(tmp_path / "faces").values())
        assert all(name.startswith("glad/") for name in found)
        assert len({name.casefold() for name in found}) == len(names)


def test_the_manifest_says_what_a_run_decided(faces: Path, tmp_path: Path, capsys) -> None:
    splits = load_data(f"folder:{faces}", image_size=8)
    decide(tmp_path / "labels.csv", splits, {"sad/03.png": "relabel", "calm/01.png": "accept"})
    assert repair(faces, tmp_path) == 0
    number = len(tree(faces)) // 36  # of splits
    assert f"{2 * number} decisions used, {number} of them by a run" in capsys.readouterr().out
    decided = {row["decided_by"]: row["source"] for row in manifest(tmp_path / "repaired")}
    assert decided["run"].endswith("sad/03.png")
    assert decided["person"].endswith("calm/01.png")


def test_a_stopped_repair_goes_on(faces: Path, tmp_path: Path, capsys) -> None:
    splits, out = load_data(f"folder:{faces}", image_size=8), tmp_path / "repaired"
    decide(tmp_path / "labels.csv", splits, {"sad/03.png": "accept"})
    assert repair(faces, tmp_path) == 0
    for path in [*out.rglob("0[1-9]*.png")]:  # as if stopped before these were copied
        path.unlink()
    decide(tmp_path / "labels.csv", splits, {"sad/04.png": "accept"})
    assert repair(faces, tmp_path) == 0
    assert {row["target"] for row in manifest(out)} == {*tree(out)} - {"manifest.csv"}
    assert repair(faces, tmp_path, "--by", "list") == 2
    assert "holds a copy; give another folder for a list" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["name,size\na,1\n", "target\n../victim.txt\n", "target\n/etc/passwd\n", "\xff\xfe\x00"]
)
def test_a_manifest_of_something_else_is_refused(
    text: str, faces: Path, tmp_path: Path, capsys
) -> None:
    decide(tmp_path / "labels.csv", load_data(f"folder:{faces}"), {"sad/03.png": "accept"})
    (tmp_path / "repaired").mkdir()
    (tmp_path / "repaired" / "manifest.csv").write_text(text, encoding="latin-1")
    before = tree(tmp_path)
    assert repair(faces, tmp_path) == 2
    assert "exists and is no repaired folder" in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("way", ["link", "list"])
def test_links_and_lists_copy_nothing(way: str, faces: Path, tmp_path: Path) -> None:
    decide(tmp_path / "labels.csv", load_data(f"folder:{faces}"), {"sad/03.png": "accept"})
    for _ in range(2):
        assert repair(faces, tmp_path, "--by", way) == 0
    rows = manifest(tmp_path / "repaired")
    assert len(rows) == len(tree(faces))
    for row in rows:
        target = tmp_path / "repaired" / row["target"]
        assert target.is_symlink() == (way == "link") == target.exists()
        if way == "link":
            assert target.resolve() == Path(row["source"]).resolve()


def test_what_is_not_repaired_is_named(faces: Path, tmp_path: Path, capsys) -> None:
    decide(
        tmp_path / "labels.csv",
        load_data(f"folder:{faces}", image_size=8),
        {"sad/03.png": "accept", "sad/04.png": "accept"},
    )
    for path in faces.rglob("sad/04.png"):
        path.unlink()
    assert repair(faces, tmp_path) == 0
    copies = {*(tmp_path / "repaired").rglob("calm/05*.png")}
    broken = next(faces.rglob("calm/05.png"))
    broken.write_bytes(b"no image")
    save_image(broken.with_name("new.png"), 7)
    assert repair(faces, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "unreadable or truncated image: 1" in shown
    assert "image that is not there any more, or has changed: " in shown
    assert [*(tmp_path / "repaired").rglob("new.png")]
    assert {*(tmp_path / "repaired").rglob("calm/05*.png")} == copies  # the last good ones


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "digits"], "--data digits: expected folder:PATH"),
        (["--out", "{faces}/inside"], "is in the folder of --data folder:"),
        (["--out", "{other}"], "exists and is no repaired folder"),
        (["--labels", "{other}/none.csv"], "not readable"),
        (["--by", "magic"], "argument --by: invalid choice"),
    ],
)
def test_wrong_input_writes_nothing(
    options: list[str], message: str, faces: Path, tmp_path: Path, capsys
) -> None:
    decide(tmp_path / "labels.csv", load_data(f"folder:{faces}"), {"sad/03.png": "accept"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    given = [text.format(faces=faces, other=tmp_path / "other") for text in options]
    before = tree(tmp_path)
    arguments = {"--data": f"folder:{faces}", "--labels": str(tmp_path / "labels.csv")}
    arguments |= {"--out": str(tmp_path / "repaired"), given[0]: given[1]}
    try:
        code = main(["repair", *(text for pair in arguments.items() for text in pair)])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert tree(tmp_path) == before
