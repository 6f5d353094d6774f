"""Inference with the network of a run, on a split of a data set or on unlabeled images."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate import Accelerator
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from unmuddle.recipe.backbones import build_backbone, saved_pixels
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages, load_data
from unmuddle.recipe.data.files import Problems, find_images, read_labeled, tell_left_out
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.evaluate import predict
from unmuddle.recipe.loaders import ordered_loader
from unmuddle.recipe.metrics import measure
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.run_folder import WEIGHTS, Epoch, RunFolder
from unmuddle.recipe.tables import write_table


class Trained(NamedTuple):
    """Network of a run, in eval mode.

    Attributes:
        folder: run folder.
        model: network that maps standardized images to logits.
        config: options of the run.
        classes: class names in label order.
        image_size: side length of the training images in pixels.
    """

    folder: RunFolder
    model: Classifier
    config: TrainConfig
    classes: tuple[str, ...]
    image_size: int


def load_trained(run: Path, epoch: Epoch = "best") -> Trained:
    """Load the network of a run, by default that of its best epoch.

    Raises:
        UsageError: the folder holds no run that has ended, or its weights do not fit.
    """
    folder = RunFolder(run)
    folder.check_ended()
    config, summary, state = folder.config(), folder.summary(), folder.weights(epoch)
    classes, image_size = tuple(summary["classes"]), int(summary["image_size"])
    parts = config.chosen_parts()
    backbone = build_backbone(config.backbone, image_size)._replace(pixels=saved_pixels(state))
    model = Classifier(backbone, len(classes), parts)
    with refusing(f"--run {run}: {WEIGHTS[epoch]} does not fit"):
        model.load_state_dict(state)
    return Trained(folder, model.eval(), config, classes, image_size)


def evaluate_run(
    run: Path,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    *,
    epoch: Epoch = "best",
    skip_unreadable: bool = False,
) -> dict[str, Any]:
    """Evaluate a run on a split, and return the metrics as JSON types.

    The labels are those before any `--noise`.

    Args:
        run: run folder.
        data: data set, specified as for `train`; by default that of the run.
        split: split of the data set.
        epoch: epoch whose weights are evaluated.
        skip_unreadable: whether to leave out images that cannot be read.

    Raises:
        UsageError: the run or the data cannot be read, or their classes differ.
    """
    trained = load_trained(run, epoch)
    part = load_split(trained, data, split, skip_unreadable=skip_unreadable)
    probabilities, labels = predict(*prepared(trained, part))
    return measure(probabilities, labels, trained.classes)


def load_split(
    trained: Trained,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    *,
    skip_unreadable: bool = False,
) -> LabeledImages:
    """Return the images of a split at the network's size, with the labels before any `--noise`.

    Decisions from before the run are applied to the validation and test labels.

    Raises:
        UsageError: the data cannot be read, or its classes differ from those of the run.
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
    if data is None and split != "train":  # other data may have paths that end alike
        trained.folder.check_unseen("--run", splits.parts()[split])
    decisions = trained.folder.decisions(splits)
    if decisions is not None:
        decisions.apply(splits.parts())
    return splits.parts()[split]


def as_input(trained: Trained, data: LabeledImages) -> LabeledImages:
    """Resize the images to the input size of the network."""
    data.transform = v2.Resize((trained.image_size,) * 2, antialias=True)
    return data


def predict_folder(
    run: Path, folder: Path, out: Path, *, epoch: Epoch = "best", skip_unreadable: bool = False
) -> int:
    """Classify every image in a folder, write a CSV file, and return the number of images.

    The columns are `file`, `predicted`, `confidence`, and `probability_CLASS` for each class. Files
    that are left out are listed on stderr.

    Raises:
        UsageError: the folder contains no images, or an image or the run cannot be read.
    """
    trained = load_trained(run, epoch)
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: no such folder")
    problems = Problems(skip_unreadable=skip_unreadable)
    paths = find_images(folder, problems)
    unlabeled = read_labeled(folder, paths, [0] * len(paths), trained.image_size, problems)
    problems.raise_if_any(f"--images {folder}")
    tell_left_out(problems.left_out)
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
    """Return the network and a data loader of the images, prepared for the device."""
    return Accelerator().prepare(trained.model, ordered_loader(data, trained.config))
