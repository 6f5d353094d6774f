"""Rank the labels of a data set that a run's predictions contradict."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from unmuddle.recipe.data import LabeledImages, load_data
from unmuddle.recipe.data.files import tell_left_out
from unmuddle.recipe.data.noise import add_noise
from unmuddle.recipe.decisions import Row
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.paths import user_path
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.uerm import Distribution, LabelLedger, Proposals, gather_evidence
from unmuddle.uerm.policy import draw_to_verify, suggestions


@dataclass(frozen=True)
class Suspect:
    """A label that may be wrong.

    Attributes:
        row: what a file of decisions says of it.
        wrong: probability that it is wrong, by the noise model that fits the run's predictions.
        confidence: probability of the suggested label, by the same.
        why: the reason in words.
        image: `(3, H, W)` uint8.
    """

    row: Row
    wrong: float
    confidence: float
    why: str
    image: Tensor


def audit(
    data: str | None,
    run: Path,
    limit: int = 200,
    *,
    draw: bool = False,
    pred_probs: Path | None = None,
) -> list[Suspect]:
    """Rank training labels by how likely they are wrong, most suspicious first.

    Any run that has ended will do, one without UERM too: its predictions are recorded all the same,
    at the end. One that was stopped will once it has looked at its training samples. Labels that
    somebody decided on before the run are left out.

    Args:
        data: data set, as for `train`; `None`: the run's own.
        run: folder of the run.
        limit: at most this many.
        draw: draw the labels at random from the half that is most likely wrong.
        pred_probs: `.npy` file of predicted probabilities `(n, K)` to use instead of the run's own,
            for example cleanlab's. Rows follow the run's `samples.csv`; a row of zeros leaves its
            sample out.

    Raises:
        UsageError: the run or the probabilities do not belong to the data, or cannot be read.
    """
    if limit < 1:
        raise UsageError(f"--limit: expected at least 1, got {limit}")
    folder = RunFolder(run)
    config = folder.config()
    splits = load_data(
        data or config.data,
        image_size=config.image_size,
        seed=config.seed,
        skip_unreadable=config.skip_unreadable,
    )
    tell_left_out(splits.left_out)
    training, classes = splits.train, splits.classes
    add_noise(training, classes, config.noise, config.seed)
    folder.check_images("--run", training)
    predictions, seen, ledger = _read_state(folder, training, len(classes))
    if pred_probs is not None:
        predictions = _read_probabilities(pred_probs, predictions.probabilities.shape)
        seen = predictions.probabilities.any(1)
    elif not seen.any():
        raise UsageError(
            f"--run {run}: has no predictions of training samples yet; "
            f"unmuddle train --resume {run} continues it"
        )
    now = ledger.current_labels

    given = training.labels
    evidence = gather_evidence(
        predictions,
        given,
        len(classes),
        current=now,
        verified=seen & ledger.human_verified(),
    )
    right, (confidence, rival) = (
        evidence.posterior.prob_of(given),
        evidence.posterior.rival(given),
    )
    wrong = 1 - right  # rounds to 1 for many labels, so the ranking uses `right`
    free = seen & ~ledger.fixed()
    proposals = (
        draw_to_verify(evidence.about(given), free, limit)
        if draw
        else Proposals(torch.where(free, rival, given), -right, 0.0, "audit")
    )

    suspects: list[Suspect] = []
    for found in suggestions(proposals, given, wrong, limit):
        i, label, suggested = found.sample, classes[found.label], classes[found.suggested]
        row = Row(i, training.source(i), label, suggested, "")
        why = (
            f"wrong with probability {wrong[i]:.2f}: predicted as {suggested} "
            f"{predictions.prob_of(rival)[i]:.2f}, as {label} {predictions.prob_of(given)[i]:.2f}"
        )
        if now[i] != given[i]:
            why += f"; the run relabeled it {classes[int(now[i])]}"
        suspects.append(
            Suspect(row, float(wrong[i]), float(confidence[i]), why, training.images[i])
        )
    return suspects


def _read_probabilities(path: Path, shape: torch.Size) -> Distribution:
    option = f"--pred_probs {path}"
    try:
        found = np.load(user_path("--pred_probs", str(path)), allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{option}: not readable: {error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise UsageError(f"{option}: not an array that numpy.save wrote") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.shape != shape:
        got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "an archive"
        raise UsageError(f"{option}: expected floats (n, K) = {tuple(shape)}, got {got}")
    probabilities = torch.from_numpy(found).float()
    sums = probabilities.sum(1)
    is_one_or_unseen = ((sums - 1).abs() < 1e-3) | (sums == 0)
    wrong = ~((probabilities >= 0).all(1) & is_one_or_unseen)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UsageError(
            f"{option}: expected probabilities that add up to 1 in each row, "
            f"got {found[row].tolist()!s:.60} in row {row}"
        )
    return Distribution(probabilities)


def _read_state(
    run: RunFolder, data: LabeledImages, num_classes: int
) -> tuple[Distribution, Tensor, LabelLedger]:
    """Return mean predictions, whether each sample was seen, and the ledger of a run."""
    state = run.uerm()
    try:
        mean, seen = state["predictions.mean"], state["predictions.seen"]
        given = state["ledger.original_labels"]
        if not torch.equal(given, data.labels) or mean.shape != (len(data), num_classes):
            raise UsageError(
                f"--run {run.path}: was trained on other labels: {len(given)} of {mean.shape[1]} "
                f"classes, not the {len(data)} of {num_classes} classes of this data set"
            )
        ledger = LabelLedger(given, num_classes)
        ledger.load_state_dict(
            {k.removeprefix("ledger."): v for k, v in state.items() if k.startswith("ledger.")}
        )
        was_seen = seen.view_as(given) > 0
    except (KeyError, IndexError, RuntimeError) as error:
        raise UsageError(f"--run {run.path}: uerm.safetensors does not fit: {error}") from error
    return Distribution(mean), was_seen, ledger
