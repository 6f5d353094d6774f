"""Data of a run: splits, label noise, decisions and votes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import Splits, load_data
from unmuddle.recipe.data.duplicates import Copy, find_duplicates
from unmuddle.recipe.data.noise import add_noise, check_noise
from unmuddle.recipe.decisions import Decisions, read_decisions
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.paths import check_outside, user_path
from unmuddle.recipe.run_folder import RunFolder


class Prepared(NamedTuple):
    """Data that a run trains on.

    Attributes:
        splits: images, resized to the network's input size. Only the training labels are noisy,
            and the labels before the noise are their true labels.
        copies: duplicate images.
        left_out: places of the items that are in no split, by kind.
        decisions: decisions about labels, if any. Those about validation and test samples have
            been applied to the splits.
        labels: file of the decisions, if the run folder has no copy of it yet, else `None`.
        votes: `(n, K)` distribution of the annotators' votes with `targets="votes"`, else `None`.
    """

    splits: Splits
    copies: list[Copy]
    left_out: Mapping[str, Sequence[str]]
    decisions: Decisions | None
    labels: Path | None
    votes: Tensor | None


def prepare(
    config: TrainConfig, run: RunFolder, *, is_resumed: bool, labels: str | None = None
) -> Prepared:
    """Load the data of a run, and the decisions about its labels.

    `labels` is a file of decisions that a resumed run is to use from now on.

    Raises:
        UsageError: the data, the noise or the decisions do not fit, or the resumed run had others.
    """
    check_noise(config.noise)
    splits = load_data(
        config.data,
        image_size=config.image_size,
        seed=config.seed,
        skip_unreadable=config.skip_unreadable,
    )
    check_outside("--out", run.path, config.data)
    copies = find_duplicates(splits)
    noise_left_out = add_noise(splits.train, splits.classes, config.noise, config.seed)
    if is_resumed:
        run.check_images("--resume", splits.train)
        run.check_unchanged(splits.train)
    decisions = run.decisions(splits)  # of a resumed run
    if labels is None and decisions is None:
        labels = config.labels
    path = user_path("--labels", labels) if labels is not None else None
    if path is not None:
        earlier, decisions = decisions, read_decisions(path, splits.parts(), splits.classes)
        decisions.check_any(f"--labels {labels}")
        if earlier is not None:
            decisions.check_includes(earlier, f"--labels {labels}", run.labels)
    if decisions is not None:
        decisions.apply(splits.parts())
    votes = splits.train.votes if config.targets == "votes" else None
    if config.targets == "votes" and votes is None:
        raise UsageError(f"--targets votes: {config.data} has no votes")
    left_out = {**splits.left_out, **noise_left_out}
    if decisions is not None:
        left_out |= {f"decision, {kind}": where for kind, where in decisions.conflicts.items()}
    return Prepared(splits, copies, left_out, decisions, path, votes)
