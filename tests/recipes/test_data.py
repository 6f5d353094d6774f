"""Data sets: what they hold, and that a broken layout is told whole before training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layouts import make_ferplus, make_folder, save_image, truncate
from unmuddle.recipes.data import LabeledImages, load_data
from unmuddle.recipes.data.ferplus import majority
from unmuddle.recipes.data.noise import add_noise, check_noise, symmetric_noise
from unmuddle.recipes.data.synthetic import load_synthetic
from unmuddle.recipes.errors import UsageError
from unmuddle.recipes.sample_sheet import sample_sheet


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


def test_item_is_image_label_and_stable_id() -> None:
    train = load_data("digits").train
    image, label, sample = train[5]
    assert (image.shape, image.dtype) == ((3, 8, 8), torch.uint8)
    assert (label, sample) == (int(train.labels[5]), 5)


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
    assert load_data(f"folder:{tmp_path}").image_size == 224


def test_folder_without_val_splits_it_off_by_class_and_seed(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "test"), each=20)
    first, again, other = (load_data(f"folder:{tmp_path}", seed=seed) for seed in (0, 0, 1))
    assert first.val.labels.bincount().tolist() == [2, 2]
    assert first.val.images.paths == again.val.images.paths != other.val.images.paths
    assert not set(first.val.images.paths) & set(first.train.images.paths)


def test_ferplus_reads_the_owners_layout(tmp_path: Path) -> None:
    splits = load_data(f"ferplus:{make_ferplus(tmp_path)}")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 12, 12]
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert splits.train.votes[6].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert splits.train[0][0].shape == (3, 48, 48)
    assert splits.train.sources[7].endswith("FER2013Train/fer0000007.png")


def test_ferplus_below_a_data_folder_and_rows_without_an_image(tmp_path: Path) -> None:
    root = make_ferplus(tmp_path / "data")
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


def test_images_of_16_bits_are_refused_not_mangled(tmp_path: Path) -> None:
    make_folder(tmp_path)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(tmp_path / "train" / "calm" / "03.png")
    with pytest.raises(UsageError, match="image of more than 8 bits a channel: 1"):
        load_data(f"folder:{tmp_path}")


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
        file.write('../z.png,"(0, 0, 48, 48)",10,0,0,0,0,0,0,0,0,0\n')
    with pytest.raises(UsageError) as error:
        load_data(f"ferplus:{tmp_path}")
    message = str(error.value)
    for problem in (
        "missing image: 1",
        "unreadable or truncated image: 1",
        "image listed twice: 1",
        "row without 10 votes, each from 0 to 10: 2",
        "image name that is not a plain file name: 1",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist", "unknown data set; expected one of synthetic"),
        ("synthetic:0", "unknown data set"),
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


@pytest.mark.parametrize("spec", ["symmetric", "symmetric:1.5", "symmetric:-1", "pair:0.1", "0.2"])
def test_wrong_noise_is_told(spec: str) -> None:
    with pytest.raises(UsageError, match="expected none, file:PATH, or symmetric:P"):
        check_noise(spec)


def test_sample_sheet_frames_wrong_labels_in_red() -> None:
    splits = load_synthetic(60, 1, 1)
    right = sample_sheet(splits.train, splits.train.labels, splits.classes)
    wrong = sample_sheet(splits.train, (splits.train.labels + 1) % 7, splits.classes)
    red = (220, 30, 30)

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
        ("expected the columns name and label", "name,class\n0.png,calm\n"),
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


def test_label_files_need_names_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("name,label\n0.png,calm\n")
    data = named()
    data.sources = ["a/0.png", "b/0.png", "1.png", "2.png"]
    with pytest.raises(UsageError, match="needs images whose file names differ"):
        add_noise(data, ("calm", "glad"), f"file:{path}", seed=0)
