"""Network of a run, applied to a split of a data set or to images without labels."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from unmuddle.recipe.backbones import build_backbone, saved_pixels
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages, load_data
from unmuddle.recipe.data.files import Problems, find_images, read_labeled, tell_left_out
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.evaluate import predict
from unmuddle.recipe.loaders import ordered_loader
from unmuddle.recipe.metrics import Metrics, measure
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.tables import write_table


class Trained(NamedTuple):
    """The network of a run's best epoch, in eval mode.

    Attributes:
        folder: of the run.
        model: standardized images to logits.
        config: of the run.
        classes: names, in label order.
        image_size: pixels a side that it was trained on.
    """

    folder: RunFolder
    model: Classifier
    config: TrainConfig
    classes: tuple[str, ...]
    image_size: int


def load_trained(run: Path) -> Trained:
    """Read a run.

    Raises:
        UsageError: the folder holds no run that has ended, or its weights do not fit.
    """
    folder = RunFolder(run)
    folder.check_ended()
    config, summary, state = folder.config(), folder.summary(), folder.weights()
    classes, image_size = tuple(summary["classes"]), int(summary["image_size"])
    parts = config.chosen_parts()
    backbone = build_backbone(config.backbone, image_size)._replace(pixels=saved_pixels(state))
    model = Classifier(backbone, len(classes), parts)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"--run {run}: model.safetensors does not fit: {error}") from error
    return Trained(folder, model.eval(), config, classes, image_size)


def evaluate_run(
    run: Path,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    *,
    skip_unreadable: bool = False,
) -> tuple[Metrics, tuple[str, ...]]:
    """Figures of a run on a split, by its labels before any `--noise`; and the classes' names.

    Args:
        run: folder of the run.
        data: data set, as for `train`; `None`: the run's own.
        split: which part of it.
        skip_unreadable: leave out images that cannot be read.

    Raises:
        UsageError: the run or the data cannot be read, or their classes differ.
    """
    trained = load_trained(run)
    part = load_split(trained, data, split, skip_unreadable=skip_unreadable)
    probabilities, labels = predict(*prepared(trained, part))
    return measure(probabilities, labels), trained.classes


def load_split(
    trained: Trained,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    *,
    skip_unreadable: bool = False,
) -> LabeledImages:
    """Return images as the network takes them, with the labels before any `--noise`.

    Validation and test labels that were decided before the run are corrected.

    Raises:
        UsageError: the data cannot be read, or has other classes than the run.
    """
    spec = data or trained.config.data
    splits = load_data(
        spec,
        image_size=trained.image_size,
        seed=trained.config.seed,
        skip_unreadable=skip_unreadable or trained.config.skip_unreadable,
    )
    tell_left_out(splits.left_out)
    if splits.classes != trained.classes:
        raise UsageError(
            f"--data {spec}: has the classes {', '.join(splits.classes)}; the run was trained on "
            f"{', '.join(trained.classes)}"
        )
    decisions = trained.folder.decisions(splits)
    if decisions is not None:
        decisions.apply(splits.parts())
    return as_input(trained, splits.parts()[split])


def as_input(trained: Trained, data: LabeledImages) -> LabeledImages:
    """Let the images have the network's size."""
    data.transform = v2.Resize((trained.image_size,) * 2, antialias=True)
    return data


def predict_folder(run: Path, folder: Path, out: Path, *, skip_unreadable: bool = False) -> int:
    """Classify every image below a folder, and write a CSV; returns how many.

    Columns: file, predicted, confidence, and `probability_CLASS` of each class. Files that are left
    out are listed on stderr.

    Raises:
        UsageError: there is no image, some cannot be read, or the run cannot.
    """
    trained = load_trained(run)
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: no such folder")
    problems = Problems(skip_unreadable=skip_unreadable)
    paths = find_images(folder, problems)
    labels = torch.zeros(len(paths), dtype=torch.int64)
    unlabeled = read_labeled(paths, labels, trained.image_size, problems)
    problems.raise_if_any(f"--images {folder}")
    tell_left_out(problems.left_out)
    if not len(unlabeled):
        raise UsageError(f"--images {folder}: no images")
    probabilities, _ = predict(*prepared(trained, unlabeled))

    rows = (
        (
            unlabeled.source(i),
            trained.classes[int(row.argmax())],
            *(f"{p:.6f}" for p in (row.max(), *row)),
        )
        for i, row in enumerate(probabilities)
    )
    columns = (f"probability_{name}" for name in trained.classes)
    write_table(out, ("file", "predicted", "confidence", *columns), rows)
    return len(unlabeled)


def prepared(trained: Trained, data: LabeledImages) -> tuple[Classifier, DataLoader[Any]]:
    """Place the network and batches of the images on the device."""
    return Accelerator().prepare(trained.model, ordered_loader(data, trained.config))
