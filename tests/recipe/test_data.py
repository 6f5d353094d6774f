"""Data sets: what they hold, and that a broken layout is told whole before training."""

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.layouts import (
    make_affectnet,
    make_affectnet_annotations,
    make_fer2013,
    make_ferplus,
    make_folder,
    make_rafdb,
    make_rafdb_folders,
    save_image,
    truncate,
)
from unmuddle.recipe.data import LabeledImages, files, load_data
from unmuddle.recipe.data.duplicates import describe, find_duplicates
from unmuddle.recipe.data.ferplus import majority
from unmuddle.recipe.data.noise import add_noise, check_noise, pair_noise, symmetric_noise
from unmuddle.recipe.data.synthetic import load_synthetic
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.sample_sheet import sample_sheet


def test_synthetic_faces_are_the_same_in_every_run_and_differ_between_splits() -> None:
    first, second = load_synthetic(20, 20, 20), load_synthetic(30, 20, 20)
    assert torch.equal(first.train.images, second.train.images[:20])
    assert torch.equal(first.train.votes, second.train.votes[:20])
    assert not torch.equal(first.train.images, first.val.images)


def test_synthetic_votes_are_a_distribution_that_mostly_favours_the_truth() -> None:
    train = load_synthetic(300, 1, 1).train
    torch.testing.assert_close(train.votes.sum(1), torch.ones(300))
    agree = (train.votes.argmax(1) == train.true_labels).float().mean()
    assert 0.85 < agree < 1, "annotators should agree mostly, but not always"
    assert set(train.labels.tolist()) == set(range(7))


def test_expressions_move_the_pixels_where_they_should() -> None:
    # Mean surprise minus mean neutral: an open mouth is darker, wide eyes are brighter.
    train = load_synthetic(700, 1, 1).train
    grey = train.images.float().mean(1)
    change = grey[train.labels == 2].mean(0) - grey[train.labels == 0].mean(0)
    assert change[33:40, 20:28].mean() < -15
    assert change[14:20, 10:18].mean() > 5


def test_item_is_image_and_label() -> None:
    train = load_data("digits").train
    image, label = train[5]
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
    assert label == int(train.labels[5])


def test_digits_test_part_does_not_depend_on_the_seed() -> None:
    first, second = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.val.images, second.val.images)
    assert len(first.train) + len(first.val) + len(first.test) == 1797


def test_folder_reads_splits_and_sizes(tmp_path: Path) -> None:
    splits = load_data(f"folder:{make_folder(tmp_path)}", image_size=32)
    assert splits.classes == ("calm", "glad")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [24, 24, 24]
    assert splits.train[0][0].shape == (3, 32, 32)
    assert splits.train.labels.bincount().tolist() == [12, 12]
    assert splits.train.sources[13].endswith("train/glad/01.png")
    assert load_data(f"folder:{tmp_path}").image_size == 48


def test_folder_without_val_splits_it_off_by_class_and_seed(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "test"), each=20)
    first, again, other = (load_data(f"folder:{tmp_path}", seed=seed) for seed in (0, 0, 1))
    assert first.val.labels.bincount().tolist() == [2, 2]
    assert first.val.sources == again.val.sources != other.val.sources
    assert not {*first.val.sources} & {*first.train.sources}


def test_too_few_images_to_split_validation_off_are_told_by_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ("train", "test"), each=8)
    save_image(root / "train" / "sad" / "0.png", seed=0)
    with pytest.raises(UsageError, match="cannot split off 10 %: only one image is of class sad"):
        load_data(f"folder:{root}")
    for number in range(1, 5):
        save_image(root / "train" / "sad" / f"{number}.png", seed=number)
    assert load_data(f"folder:{root}").val.labels.bincount().tolist() == [1, 1, 1]


def test_ferplus_reads_the_owners_layout(tmp_path: Path) -> None:
    splits = load_data(f"ferplus:{make_ferplus(tmp_path)}")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 12, 12]
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert splits.train.votes[6].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert splits.train[0][0].shape == (3, 48, 48)
    assert splits.train.sources[7].endswith("FER2013Train/fer0000007.png")


def test_ferplus_may_have_rows_without_an_image(tmp_path: Path) -> None:
    root = make_ferplus(tmp_path)
    with (root / "FER2013Train" / "label.csv").open("a") as file:
        file.write(',"(0, 0, 48, 48)",1,1,1,1,1,1,1,1,1,1\n\n')
    assert len(load_data(f"ferplus:{tmp_path}").train) == 12


def test_ferplus_majority_by_hand() -> None:
    votes = torch.tensor(
        [
            [6, 4, 0, 0, 0, 0, 0, 0, 0, 0],  # neutral, 6 of 10
            [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],  # no more than half
            [5, 2, 1, 1, 1, 0, 0, 0, 0, 0],  # single votes count as 0: 5 of 7
            [0, 0, 0, 0, 0, 0, 0, 2, 8, 0],  # unknown
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 10],  # not a face
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],  # nothing left
        ]
    )
    labels, distribution = majority(votes)
    assert labels.tolist() == [0, -1, 0, -1, -1, -1]
    torch.testing.assert_close(distribution[2, :2], torch.tensor([5 / 7, 2 / 7]))


@pytest.mark.parametrize("make", [make_rafdb, make_rafdb_folders])
def test_rafdb_reads_lists_and_folders(make, tmp_path: Path) -> None:
    splits = load_data(f"rafdb:{make(tmp_path)}")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [63, 7, 70]
    assert splits.val.labels.bincount().tolist() == [1] * 7
    assert (splits.classes[0], splits.classes[6]) == ("surprise", "neutral")
    faces = zip(splits.test.sources, splits.test.labels.tolist(), strict=True)
    numbered = sorted((Path(source).name, label) for source, label in faces)
    assert [label for _, label in numbered] == [number % 7 for number in range(70)]
    assert numbered[3][0] == "test_00004_aligned.jpg"
    assert splits.train[0][0].shape == (3, 100, 100)


@pytest.mark.parametrize(("name", "classes"), [("affectnet", 8), ("affectnet7", 7)])
@pytest.mark.parametrize("make", [make_affectnet, make_affectnet_annotations])
def test_affectnet_reads_both_layouts(make, name: str, classes: int, tmp_path: Path) -> None:
    splits = load_data(f"{name}:{make(tmp_path)}")
    assert splits.train.labels.bincount().tolist() == [9] * classes
    assert splits.val.labels.bincount().tolist() == [1] * classes
    assert splits.test.labels.bincount().tolist() == [10] * classes
    assert len(splits.classes) == classes
    assert splits.classes[1] == "happiness"
    assert splits.test[0][0].shape == (3, 224, 224)


def test_affectnet_faces_are_cut_out(tmp_path: Path) -> None:
    test = load_data(f"affectnet:{make_affectnet(tmp_path)}", image_size=40).test
    with Image.open(test.source(0)) as image:
        face = image.convert("RGB").crop((4, 6, 54, 46)).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(test[0][0].permute(1, 2, 0).numpy(), np.array(face))


@pytest.mark.parametrize(("name", "make"), [("affectnet", make_affectnet), ("rafdb", make_rafdb)])
def test_a_small_set_is_decoded_once_to_what_a_large_one_is_each_time(
    name: str, make, tmp_path: Path, monkeypatch
) -> None:
    root = make(tmp_path)
    small = load_data(f"{name}:{root}", image_size=40)
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    large = load_data(f"{name}:{root}", image_size=40)
    for kept, read in (
        (small.train, large.train),
        (small.val, large.val),
        (small.test, large.test),
    ):
        assert isinstance(kept.images, torch.Tensor)
        assert isinstance(read.images, files.ImageFiles)
        assert kept.digests == read.digests
        assert all(torch.equal(kept[i][0], read[i][0]) for i in range(len(read)))
    for path in root.rglob("*.jp*g"):
        path.unlink()
    assert small.train[0][0].shape == (3, 40, 40)


@pytest.mark.parametrize("name", ["fer2013.csv", "icml_face_data.csv"])
def test_fer2013_reads_both_tables(name: str, tmp_path: Path) -> None:
    splits = load_data(f"fer2013:{make_fer2013(tmp_path, name=name)}")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [21] * 3
    assert splits.train.labels[:3].tolist() == [0, 1, 2]
    pixels = np.random.default_rng(0).integers(0, 256, 48 * 48)
    assert np.array_equal(splits.train[0][0][1].flatten().numpy(), pixels)


def broken_rafdb(root: Path) -> None:
    make_rafdb(root)
    with (root / "EmoLabel" / "list_patition_label.txt").open("a") as file:
        file.write(
            "\ntrain_00001.jpg 5\ntrain_00099.jpg 8\n../x.jpg 1\nvalid_00001.jpg 1\ntrain_09999.jpg 1"
        )


def broken_affectnet(root: Path) -> None:
    make_affectnet(root)
    with (root / "Manually_Annotated_file_lists" / "training.csv").open("a") as file:
        file.write("0/y.jpg,4,6,wide,40,,1,0,0\n0/z.jpg\n0/gone.jpg,4,6,50,40,,1,0,0\n")


def broken_annotations(root: Path) -> None:
    make_affectnet_annotations(root)
    annotations = root / "train_set" / "annotations"
    np.save(annotations / "0_exp.npy", np.array("happy"))
    np.save(annotations / "1_exp.npy", np.array([{"a": 1}], dtype=object))  # a pickle: code
    np.save(annotations / "2_exp.npy", np.int64(-1))
    (annotations / "3_exp.npy").write_bytes(b"")
    (annotations / "4_exp.npy").unlink()
    (root / "val_set" / "images").rename(root / "val_set" / "pictures")


def broken_fer2013(root: Path) -> None:
    make_fer2013(root)
    black = " ".join(["0"] * 48 * 48)
    rows = [
        f"7,{black},Training",
        f"0,{black},Test",
        f"0,{black} 0,Training",
        f"0,{black[:-1]}256,Training",
        "0,x,Training",
    ]
    with (root / "fer2013.csv").open("a") as file:
        file.write("\n".join(rows))


@pytest.mark.parametrize(
    ("name", "make", "problems"),
    [
        (
            "rafdb",
            broken_rafdb,
            ["image listed twice: 1", "label that is not from 1 to 7: 1", "image name that is not train_... or test_...: 2", "missing image: 1"],
        ),
        (
            "affectnet",
            broken_affectnet,
            ["row without a box and an expression, as numbers: 2", "missing image: 1"],
        ),
        (
            "affectnet",
            broken_annotations,
            ["image without a whole number as its annotation: 4", "folder that is not readable: 1", "no images: 1"],
        ),
        (
            "fer2013",
            broken_fer2013,
            ["row without 48 x 48 pixels, an emotion from 0 to 6 and a Usage: 5"],
        ),
    ],
)  # fmt: skip
def test_every_problem_of_a_layout_is_told_in_one_error(
    name: str, make, problems: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(UsageError) as error:
        load_data(f"{name}:{tmp_path}")
    found = [
        line.strip()
        for line in str(error.value).splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert sorted(found) == sorted(problems)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def test_an_annotation_does_not_run_code(tmp_path: Path) -> None:
    make_affectnet_annotations(tmp_path)
    annotation = tmp_path / "train_set" / "annotations" / "0_exp.npy"
    np.save(annotation, np.array([Code(tmp_path / "run")], dtype=object))
    with pytest.raises(UsageError, match="whole number as its annotation: 1"):
        load_data(f"affectnet:{tmp_path}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rafdb", "expected EmoLabel/list_patition_label.txt and Image/aligned, or train/1"),
        ("affectnet", "expected Manually_Annotated_file_lists and Manually_Annotated_Images, or"),
        ("fer2013", "expected fer2013.csv or icml_face_data.csv"),
    ],
)
def test_an_empty_folder_is_told_what_was_expected(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(f"{name}:{tmp_path}")


def test_fer2013_needs_its_columns_and_text(tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").write_text("emotion,Usage\n0,Training\n")
    with pytest.raises(UsageError, match=r"fer2013.csv: lacks the columns pixels"):
        load_data(f"fer2013:{tmp_path}")
    (tmp_path / "fer2013.csv").write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match=r"fer2013.csv: not UTF-8"):
        load_data(f"fer2013:{tmp_path}")


def test_images_that_occur_twice_are_found_within_and_across_splits(tmp_path: Path) -> None:
    make_folder(tmp_path)
    save_image(tmp_path / "train" / "glad" / "copy.png", seed=3)  # of train/calm/03.png
    save_image(tmp_path / "test" / "calm" / "copy.bmp", seed=2005)  # of test/calm/05.png
    save_image(tmp_path / "test" / "glad" / "copy.png", seed=1100)  # of val/glad/00.png
    splits = load_data(f"folder:{tmp_path}", image_size=32)
    copies = find_duplicates(splits)
    assert [(c.group, c.split, Path(c.file).name, c.label) for c in copies] == [
        (0, "train", "03.png", "calm"), (0, "train", "copy.png", "glad"),
        (1, "val", "00.png", "glad"), (1, "test", "copy.png", "glad"),
        (2, "test", "05.png", "calm"), (2, "test", "copy.bmp", "calm"),
    ]  # fmt: skip
    assert {copy.likeness for copy in copies} == {"exact"}
    assert describe(copies) == (
        "3 images occur more than once, 0 nearly, 1 of these groups in several splits, 1 with "
        "different labels"
    )
    assert find_duplicates(load_data("digits")) == []


def test_images_scaled_or_compressed_again_are_found_and_other_faces_are_not(
    tmp_path: Path,
) -> None:
    faces = load_data("synthetic:200").train
    for i in range(200):
        for split in ("train", "test") if i < 20 else ("train",):
            path = tmp_path / split / str(i % 2) / f"{split}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            face = faces.images[i + 100 * (split == "test")].permute(1, 2, 0).numpy()
            image = Image.fromarray(face)
            if split == "test":  # of train100.png to train119.png
                image = image.resize((44, 44)) if i < 10 else image
                path = path.with_suffix(".jpg")
            image.save(path, quality=80)
    copies = find_duplicates(load_data(f"folder:{tmp_path}", image_size=48))
    groups: dict[int, list[int]] = {}
    for copy in copies:
        assert copy.likeness == "near"
        number = int("".join(filter(str.isdigit, Path(copy.file).stem)))
        groups.setdefault(copy.group, []).append(number + 100 * ("/test/" in copy.file))
    assert all(len(set(group)) == 1 for group in groups.values())
    assert len(groups) >= 18


def test_a_folder_of_small_images_is_read_at_their_own_size(tmp_path: Path) -> None:
    for side, name in ((28, "small"), (400, "large")):
        for i in range(24):
            path = tmp_path / name / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side - 4), (10 * i, 0, 0)).save(path)
    sizes = [load_data(f"folder:{tmp_path / name}").image_size for name in ("small", "large")]
    assert sizes == [28, 224]
    assert load_data(f"folder:{tmp_path / 'small'}", image_size=32).image_size == 32


def test_a_folder_of_classes_is_split_by_class_and_seed(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(40 if name == "a" else 20):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (6 * i, 0, 200 * (name == "b"))).save(path)
    (tmp_path / "notes.txt").write_text("mine")
    first, again, other = (load_data(f"folder:{tmp_path}", seed=seed) for seed in (0, 0, 1))
    assert first.classes == ("a", "b")
    counts = {name: part.labels.bincount().tolist() for name, part in first.parts().items()}
    assert counts == {"train": [32, 16], "val": [4, 2], "test": [4, 2]}
    files = [[*part.sources] for part in first.parts().values()]
    assert len({file for part in files for file in part}) == 60
    assert files == [[*part.sources] for part in again.parts().values()]
    assert files != [[*part.sources] for part in other.parts().values()]
    assert [*first.left_out] == ["entry that is not a class folder"]


def test_a_list_of_numbers_is_refused_where_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "noise.txt"
    path.write_text("a b.png 2\n")
    data = LabeledImages(
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.tensor([0, 1]),
        sources=["a b.png", "c.png"],
    )
    with pytest.raises(UsageError, match="other numbers as names: 1, 10, 2; give a CSV"):
        add_noise(data, ("1", "10", "2"), f"file:{path}", seed=0)
    add_noise(data, ("calm", "glad"), f"file:{path}", seed=0)
    assert data.labels.tolist() == [1, 1]


def test_an_affectnet_list_without_its_columns_is_told(tmp_path: Path) -> None:
    lists = make_affectnet(tmp_path) / "Manually_Annotated_file_lists"
    (lists / "validation.csv").write_text("subDirectory_filePath,face_x\n")
    with pytest.raises(UsageError, match="validation.csv: lacks the columns face_y"):
        load_data(f"affectnet:{tmp_path}")


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path)
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "train" / "calm" / "00.png").rename(tmp_path / "train" / "calm" / name)
    with pytest.raises(UsageError, match="name that is not UTF-8: 1"):
        load_data(f"folder:{tmp_path}")


def test_a_broken_folder_is_told_whole_in_one_error(tmp_path: Path) -> None:
    make_folder(tmp_path)
    truncate(tmp_path / "train" / "calm" / "03.png")
    truncate(tmp_path / "test" / "glad" / "01.png")
    (tmp_path / "val" / "glad" / "05.png").write_text("not an image")
    save_image(tmp_path / "test" / "angry" / "0.png", seed=0)
    with pytest.raises(UsageError) as error:
        load_data(f"folder:{tmp_path}")
    message = str(error.value)
    assert "unreadable or truncated image: 3" in message
    assert "class that train does not have: 1" in message
    for place in ("calm/03.png", "glad/01.png", "glad/05.png", "test/angry"):
        assert place in message


def png_of_16_bits() -> bytes:
    """A black 2 x 2 PNG of 16-bit RGB, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress(2 * (b"\0" + bytes(12)))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_images_of_16_bits_are_refused_not_mangled(tmp_path: Path) -> None:
    make_folder(tmp_path)
    calm = tmp_path / "train" / "calm"
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(calm / "03.png")
    Image.fromarray(np.zeros((9, 9), dtype=np.float32)).save(calm / "float.tif")
    (calm / "colour.png").write_bytes(png_of_16_bits())
    with pytest.raises(UsageError, match="image of more than 8 bits a channel: 3"):
        load_data(f"folder:{tmp_path}")


def test_every_format_that_pillow_reads_is_read_whatever_its_name(tmp_path: Path) -> None:
    calm = make_folder(tmp_path) / "train" / "calm"
    with Image.open(calm / "00.png") as image:
        grey = image.copy()
    for number, name in enumerate(["a.gif", "b.JFIF", "c.tga", "d.webp", "e.ico", "f.ppm"]):
        grey.save(calm / name, sizes=[(48, 48)])
        assert number < 12
    for name, kind in (("g", "PNG"), ("h.dat", "JPEG"), ("i.jpg_large", "GIF")):
        grey.save(calm / name, kind)
    left = {
        "file that is not an image": ["Thumbs.db", "face.heic", "notes.txt", "scan.eps"],
        "hidden file": [".DS_Store", "._00.png", ".ipynb_checkpoints/00.png"],
    }
    for name in (name for names in left.values() for name in names):
        (calm / name).parent.mkdir(exist_ok=True)
        (calm / name).write_bytes(b"\0\5\x16\7 no image")
    grey.convert("L").save(calm / "scan.eps")
    (tmp_path / "README").write_text("faces")
    (tmp_path / "valid").mkdir()
    (tmp_path / "train" / "loose.png").write_bytes((calm / "00.png").read_bytes())
    (tmp_path / "train" / ".cache").mkdir()
    splits = load_data(f"folder:{tmp_path}", image_size=48)
    assert splits.train.labels.bincount().tolist() == [12 + 9, 12]
    for sample in range(12, 21):
        change = (splits.train[sample][0].float() - splits.train[0][0]).abs().mean()
        assert change < 20, splits.train.source(sample)
    assert {kind: [*map(Path, places)] for kind, places in splits.left_out.items()} == {
        "entry that is none of train, val, test": [tmp_path / "README", tmp_path / "valid"],
        "entry that is not a class folder": [
            tmp_path / "train" / n for n in (".cache", "loose.png")
        ],
        **{kind: [calm / name for name in sorted(names)] for kind, names in left.items()},
    }


def test_images_behind_links_are_read_once(tmp_path: Path) -> None:
    calm = make_folder(tmp_path / "data") / "train" / "calm"
    for number in range(3):
        save_image(tmp_path / "elsewhere" / "deep" / f"{number}.png", seed=5000 + number)
    (calm / "linked").symlink_to(tmp_path / "elsewhere")
    (calm / "round").symlink_to(calm)
    (tmp_path / "data/train/sad").symlink_to(tmp_path / "elsewhere")
    splits = load_data(f"folder:{tmp_path / 'data'}", image_size=16)
    assert splits.train.labels.bincount().tolist() == [15, 12, 3]
    assert splits.left_out == {"link to a folder that is read already": [str(calm / "round")]}


def test_the_same_link_is_followed_in_whatever_order_folders_are_listed(
    tmp_path: Path, monkeypatch
) -> None:
    calm = make_folder(tmp_path / "data") / "train" / "calm"
    save_image(tmp_path / "elsewhere" / "0.png", seed=5000)
    for name in ("a", "b"):
        (calm / name).symlink_to(tmp_path / "elsewhere")
    walk = os.walk
    for way in (1, -1):

        def listed(*arguments, way=way, **options):
            for root, folders, names in walk(*arguments, **options):
                folders.sort()
                folders[:] = folders[::way]
                yield root, folders, names

        monkeypatch.setattr(os, "walk", listed)
        found = load_data(f"folder:{tmp_path / 'data'}", image_size=16).left_out
        assert found == {"link to a folder that is read already": [str(calm / "b")]}


def test_unreadable_images_are_skipped_if_asked(tmp_path: Path) -> None:
    make_folder(tmp_path)
    broken = [tmp_path / "train" / "calm" / "03.png", tmp_path / "train" / "glad" / "00.png"]
    for path in broken:
        truncate(path)
    (tmp_path / "val" / "glad" / "05.png").write_text("not an image")
    with pytest.raises(UsageError) as error:
        load_data(f"folder:{tmp_path}", image_size=16)
    assert "there are problems; --skip_unreadable leaves out unreadable images\n" in str(
        error.value
    )
    assert all(str(path) in str(error.value) for path in broken)
    splits = load_data(f"folder:{tmp_path}", image_size=16, skip_unreadable=True)
    kind = "unreadable or truncated image"
    assert splits.left_out == {kind: [*map(str, [*broken, tmp_path / "val/glad/05.png"])]}
    assert splits.train.labels.tolist() == [0] * 11 + [1] * 11
    assert not set(map(str, broken)) & set(splits.train.sources)
    assert splits.train.source(3).endswith("calm/04.png")
    with Image.open(splits.train.source(3)) as image:
        grey = np.array(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(splits.train[3][0].permute(1, 2, 0).numpy(), grey)
    assert len(splits.val) == 23
    for path in (tmp_path / "train" / "calm").iterdir():
        truncate(path)
    with pytest.raises(UsageError, match="class without images: 1"):
        load_data(f"folder:{tmp_path}", image_size=16, skip_unreadable=True)


@pytest.mark.parametrize("in_memory", [0, 2**29])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_images_are_the_way_up_that_exif_says(
    suffix: str, in_memory: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(files, "IN_MEMORY", in_memory)
    make_folder(tmp_path, each=8)
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:24, :24] = 250  # bright at the top left
    folder = tmp_path / "train" / "calm"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (folder / f"{orientation - 1:02}.png").unlink()
        Image.fromarray(pixels).save(folder / f"{orientation - 1:02}{suffix}", exif=exif)
    train = load_data(f"folder:{tmp_path}", image_size=48).train
    bright = {
        (0, 0): "top left",
        (0, 1): "top right",
        (1, 0): "bottom left",
        (1, 1): "bottom right",
    }
    found = []
    for sample in range(8):
        quarters = train[sample][0].float().mean(0).unflatten(0, (2, 24)).unflatten(2, (2, 24))
        found.append(bright[divmod(int(quarters.mean((1, 3)).argmax()), 2)])
    assert found == [
        "top left", "top right", "bottom right", "bottom left",
        "top left", "top right", "bottom right", "bottom left",
    ]  # fmt: skip


def test_a_broken_exif_block_says_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path, each=3)
    path = tmp_path / "train" / "calm" / "00.png"
    with Image.open(path) as image:
        image.convert("RGB").save(path.with_suffix(".jpg"), exif=b"Exif\0\0II*\0\xff\xff\xff")
    path.unlink()
    assert len(load_data(f"folder:{tmp_path}", image_size=16).train) == 6


def test_frames_that_are_not_used_are_told(tmp_path: Path) -> None:
    calm = make_folder(tmp_path, each=3) / "train" / "calm"
    frames = [Image.fromarray(np.full((9, 9), shade, np.uint8)) for shade in (0, 200)]
    frames[0].save(calm / "two.gif", save_all=True, append_images=frames[1:])
    splits = load_data(f"folder:{tmp_path}", image_size=9)
    kind = "frames after the first one of an image"
    assert splits.left_out == {kind: [str(calm / "two.gif")]}
    assert not splits.train[3][0].any()


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_several_frames_cut_off_anywhere_are_unreadable_or_read(
    suffix: str, tmp_path: Path
) -> None:
    calm = make_folder(tmp_path, each=3) / "train" / "calm"
    frames = [Image.fromarray(np.full((9, 9), shade, np.uint8)) for shade in (0, 200)]
    frames[0].save(calm / f"whole{suffix}", save_all=True, append_images=frames[1:])
    whole = (calm / f"whole{suffix}").read_bytes()
    for length in range(0, len(whole), 3):
        (calm / f"cut{length}{suffix}").write_bytes(whole[:length])
    splits = load_data(f"folder:{tmp_path}", image_size=9, skip_unreadable=True)
    read = int(splits.train.labels.bincount()[0])
    unreadable = len(splits.left_out["unreadable or truncated image"])
    assert read + unreadable == 3 + 1 + len(range(0, len(whole), 3))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = make_folder(tmp_path, each=3) / "train" / "calm" / "pipe"
    os.mkfifo(pipe)
    found = load_data(f"folder:{tmp_path}", image_size=9).left_out
    assert found == {"file that is not an image": [str(pipe)]}


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    calm = make_folder(tmp_path, each=3) / "train" / "calm"
    red = np.zeros((9, 9, 4), np.uint8)
    red[..., 0], red[:, 3:6, 3], red[:, 6:, 3] = 255, 255, 51  # clear, solid, a fifth
    Image.fromarray(red).save(calm / "a.png")
    palette = Image.fromarray(np.eye(9, dtype=np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 0, 0, 250])
    palette.save(calm / "b.png", transparency=b"\x00\xff")
    palette.save(calm / "c.gif", transparency=1)
    train = load_data(f"folder:{tmp_path}", image_size=9).train
    found = train[3][0][:, 4, [0, 4, 8]].T.tolist()
    assert found == [[255, 255, 255], [255, 0, 0], [255, 204, 204]]
    assert train[4][0][:, 0, :2].T.tolist() == [[0, 0, 250], [255, 255, 255]]
    assert train[5][0][:, 0, :2].T.tolist() == [[255, 255, 255], [0, 0, 0]]


def test_what_the_rules_of_a_data_set_leave_out_is_counted(tmp_path: Path) -> None:
    root = make_ferplus(tmp_path / "ferplus")
    with (root / "FER2013Train" / "label.csv").open("a") as file:
        file.write(',"(0, 0, 48, 48)",1,1,1,1,1,1,1,1,1,1\n')
        file.write('fer9.png,"(0, 0, 48, 48)",5,5,0,0,0,0,0,0,0,0\n')
    save_image(root / "FER2013Train" / "fer9.png", seed=9)
    save_image(root / "FER2013Test" / "fer8.png", seed=8)
    counts = {k: len(v) for k, v in load_data(f"ferplus:{root}").left_out.items()}
    assert counts == {
        "row without an image": 1,
        "file that label.csv does not name": 1,
        "face without a majority emotion": 1,
    }
    root = make_affectnet(tmp_path / "affectnet")
    counts = {k: len(v) for k, v in load_data(f"affectnet7:{root}").left_out.items()}
    assert counts == {
        "face of none of the 7 expressions": 22,
        "face with an empty box": 2,
    }
    lists = root / "Manually_Annotated_file_lists" / "training.csv"
    lists.write_text(lists.read_text() + "0/0000.jpg,4,6,50,40,,8,0,0\n0/none.jpg,0,0,9,9,,9,0,0\n")
    left_out = load_data(f"affectnet7:{root}").left_out
    assert len(left_out["face of none of the 7 expressions"]) == 24
    root = make_rafdb(tmp_path / "rafdb")
    save_image(root / "Image" / "aligned" / "train_99999_aligned.jpg", seed=0)
    splits = load_data(f"rafdb:{root}")
    assert [*splits.left_out] == ["file that the list does not name"]
    folders = make_rafdb_folders(tmp_path / "folders")
    (folders / "train" / "3" / ".DS_Store").write_bytes(b"")
    assert [*load_data(f"rafdb:{folders}").left_out] == ["hidden file"]
    path = tmp_path / "labels.csv"
    path.write_text("name,label\ntrain_00001.jpg,fear\nfoo.png,fear\n")
    train = splits.train
    train.sources[0] = "train_00001_aligned.jpg"
    left_out = add_noise(train, splits.classes, f"file:{path}", seed=0)
    assert left_out == {
        "row of the noise file that names no training image": [f"{path}: row 3: foo.png"]
    }


@pytest.mark.parametrize("content", ["é,1".encode("latin-1"), b"x" * 200_000])
def test_an_unreadable_csv_is_told(tmp_path: Path, content: bytes) -> None:
    (make_ferplus(tmp_path) / "FER2013Valid" / "label.csv").write_bytes(content)
    with pytest.raises(UsageError, match="FER2013Valid/label.csv: not readable"):
        load_data(f"ferplus:{tmp_path}")


def test_long_lists_of_problems_are_cut_with_their_count(tmp_path: Path) -> None:
    make_folder(tmp_path, each=30)
    for path in (tmp_path / "train" / "calm").iterdir():
        truncate(path)
    with pytest.raises(UsageError, match=r"image: 30\n(    .*\n){20}    \.\.\. and 10 more"):
        load_data(f"folder:{tmp_path}")


def test_a_broken_ferplus_is_told_whole_in_one_error(tmp_path: Path) -> None:
    root = make_ferplus(tmp_path)
    train, valid = root / "FER2013Train", root / "FER2013Valid"
    (train / "fer0000002.png").unlink()
    truncate(train / "fer0000003.png")
    with (valid / "label.csv").open("a") as file:
        file.write('fer0000012.png,"(0, 0, 48, 48)",10,0,0,0,0,0,0,0,0,0\n')
        file.write('x.png,"(0, 0, 48, 48)",11,0,0,0,0,0,0,0,0,0\n')
        file.write('y.png,"(0, 0, 48, 48)",ten,0,0,0,0,0,0,0,0,0\n')
    with pytest.raises(UsageError) as error:
        load_data(f"ferplus:{tmp_path}")
    message = str(error.value)
    for problem in (
        "missing image: 1",
        "unreadable or truncated image: 1",
        "image listed twice: 1",
        "row without 10 votes, each from 0 to 10: 2",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist", "unknown data set; expected one of synthetic"),
        ("synthetic:0", "unknown data set; expected one of synthetic, synthetic:N"),
        ("digits:5", "unknown data set"),
        ("folder", "expected folder:PATH"),
        ("ferplus:/no/such/place", "no such folder: /no/such/place"),
    ],
)
def test_wrong_names_are_told(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(spec)


def test_symmetric_noise_flips_the_share_asked_for_evenly_and_by_seed() -> None:
    labels = torch.arange(7).repeat(3000)
    noisy = symmetric_noise(labels, 7, 0.3, seed=0)
    wrong = noisy != labels
    # 21,000 draws of probability 0.3: four standard deviations are 0.0127.
    assert abs(wrong.double().mean() - 0.3) < 0.0127
    flows = torch.bincount(labels[wrong] * 7 + noisy[wrong], minlength=49).view(7, 7)
    off_diagonal = flows[~torch.eye(7, dtype=torch.bool)]
    assert off_diagonal.min() > 100  # 150 expected, standard deviation 12
    assert off_diagonal.max() < 200
    assert torch.equal(noisy, symmetric_noise(labels, 7, 0.3, seed=0))
    assert not torch.equal(noisy, symmetric_noise(labels, 7, 0.3, seed=1))


def test_pair_noise_goes_to_the_next_class() -> None:
    labels = torch.arange(7).repeat(3000)
    noisy = pair_noise(labels, 7, 0.3, seed=0)
    wrong = noisy != labels
    assert abs(wrong.double().mean() - 0.3) < 0.0127
    assert torch.equal(noisy[wrong], (labels[wrong] + 1) % 7)
    assert not torch.equal(noisy, pair_noise(labels, 7, 0.3, seed=1))


@pytest.mark.parametrize("spec", ["symmetric", "symmetric:1.5", "pair:-1", "pairs:0.1", "0.2"])
def test_wrong_noise_is_told(spec: str) -> None:
    with pytest.raises(UsageError, match="expected none, file:PATH, symmetric:P or pair:P"):
        check_noise(spec)


def test_sample_sheet_frames_wrong_labels_in_red() -> None:
    splits = load_synthetic(60, 1, 1)
    moved = replace(splits.train, labels=(splits.train.labels + 1) % 7)
    right, wrong = (sample_sheet(data, splits.classes) for data in (splits.train, moved))
    red = (255, 0, 0)

    def count_red(picture) -> int:
        return int((np.asarray(picture) == red).all(2).sum())

    assert count_red(right) == 0
    assert count_red(wrong) > 1000


def named(n: int = 4) -> LabeledImages:
    images = torch.zeros(n, 3, 4, 4, dtype=torch.uint8)
    return LabeledImages(
        images, torch.zeros(n, dtype=torch.int64), sources=[f"/faces/{i}.png" for i in range(n)]
    )


def test_labels_of_a_file_become_noise(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("label,name\nglad,2.png\ncalm,0.png\nglad,of-another-split.png\n")
    data = named()
    add_noise(data, ("calm", "glad"), f"file:{path}", seed=0)
    assert data.labels.tolist() == [0, 0, 1, 0]
    assert data.true_labels.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("not readable", None),
        ("lacks the columns label; its first row holds name, class", "name,class\n0.png,calm\n"),
        ("label that is none of calm, glad: 1", "name,label\n0.png,sad\n"),
        ("image listed twice: 1", "name,label\n0.png,calm\n0.png,glad\n"),
        ("file without any of the training images: 1", "name,label\nother.png,calm\n"),
    ],
)
def test_wrong_label_files_are_told_and_change_nothing(
    message: str, text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    data = named()
    with pytest.raises(UsageError, match=message):
        add_noise(data, ("calm", "glad"), f"file:{path}", seed=0)
    assert data.true_labels is None
    assert not data.labels.any()


def test_label_files_name_the_folder_where_names_repeat(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    data = named()
    data.sources = ["/x/a/0.png", "/x/b/0.png", "/x/b/1.png", "/x/b/2.png"]
    path.write_text("name,label\nb/0.png,glad\n1.png,glad\n/x/b/2.png,glad\n")
    add_noise(data, ("calm", "glad"), f"file:{path}", seed=0)
    assert data.labels.tolist() == [0, 1, 1, 1]
    path.write_text("name,label\n0.png,calm\n")
    with pytest.raises(
        UsageError, match=r"name of several images; give the folder too: 1\n +row 2: 0.png"
    ):
        add_noise(data, ("calm", "glad"), f"file:{path}", seed=0)


@pytest.mark.parametrize("make", [make_rafdb, make_rafdb_folders])
def test_rafdb_lists_of_noise_are_read(make, tmp_path: Path) -> None:
    splits = load_data(f"rafdb:{make(tmp_path / 'faces')}")
    given = splits.train.labels.clone()
    # The whole list, validation and test images too; every third image is another class.
    lines = [
        f"{part}_{n + 1:05}.jpg {(n + (n % 3 == 0)) % 7 + 1}"
        for part in ("train", "test")
        for n in range(70)
    ]
    path = tmp_path / "noise02.txt"
    path.write_text("\n".join(lines))
    add_noise(splits.train, splits.classes, f"file:{path}", seed=0)
    numbers = [int(Path(source).name[6:11]) - 1 for source in splits.train.sources]
    assert splits.train.labels.tolist() == [(n + (n % 3 == 0)) % 7 for n in numbers]
    assert torch.equal(splits.train.true_labels, given)


def test_wrong_lists_of_noise_are_told_whole(tmp_path: Path) -> None:
    splits = load_data(f"rafdb:{make_rafdb(tmp_path)}")
    before = splits.train.labels.clone()
    path = tmp_path / "noise.txt"
    name = Path(splits.train.sources[0]).name.replace("_aligned", "")
    path.write_text(f"{name} 8\n\n{name} 1\n{name} 2\nalone\n")
    with pytest.raises(UsageError) as caught:
        add_noise(splits.train, splits.classes, f"file:{path}", seed=0)
    text = str(caught.value)
    assert "anger, neutral: 2\n    row 1: 8\n    row 5: alone\n" in text
    assert "image listed twice: 2" in text
    assert torch.equal(splits.train.labels, before)
