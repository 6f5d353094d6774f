"""Rank the labels of a data set by how likely they are wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unmuddle.recipe.data import Splits, load_data
from unmuddle.recipe.data.files import tell_left_out
from unmuddle.recipe.data.noise import add_noise
from unmuddle.recipe.decisions import Row
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.evaluate import predict
from unmuddle.recipe.run_folder import ENDED, RunFolder
from unmuddle.recipe.trained import Trained, as_input, load_trained, prepared
from unmuddle.uerm import Distribution, Evidence, Proposals, gather_evidence
from unmuddle.uerm.policy import draw_to_verify, suggestions


@dataclass(frozen=True)
class Suspect:
    """A label that may be wrong.

    Attributes:
        row: row for the file of decisions.
        wrong: probability that the label is wrong, by the noise model fitted to the predictions.
        why: reason in words.
        image: `(3, H, W)` uint8.
    """

    row: Row
    wrong: float
    why: str
    image: Tensor


class Part(NamedTuple):
    """Samples whose predictions come from the same source.

    Attributes:
        places: split and id of each sample.
        given: `(n,)` given labels.
        now: `(n,)` labels at the end of the run.
        evidence: evidence about the given labels.
        free: `(n,)` mask of samples that have a prediction and no decision.
    """

    places: list[tuple[str, int]]
    given: Tensor
    now: Tensor
    evidence: Evidence
    free: Tensor


def audit(
    data: str | None,
    run: Path,
    limit: int = 200,
    *,
    draw: bool = False,
    pred_probs: Path | None = None,
) -> tuple[list[Suspect], tuple[str, ...]]:
    """Rank labels by how likely they are wrong. Return the suspects and the class names.

    The most suspicious label comes first. Training labels are judged by the run's predictions
    during training, with or without UERM. Validation and test labels are judged by the network of
    the best epoch, which was not trained on them. If the run was stopped, they are not judged.
    Labels with a decision from before the run are left out. So are training images that have
    changed since, which are listed on stderr.

    Args:
        data: data set, specified as for `train`; by default that of the run.
        run: run folder.
        limit: maximum number of labels.
        draw: whether to draw training labels at random from the quarter that is most likely wrong.
        pred_probs: `.npy` file of predicted probabilities `(n, K)` to use instead of those of the
            run, for example from cleanlab. The rows are in the order of the run's `samples.csv`. A
            row of zeros leaves its sample out. Validation and test labels are not judged then.

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
    add_noise(splits.train, splits.classes, config.noise, config.seed)
    folder.check_images("--run", splits.train)
    parts = [training(folder, splits, pred_probs)]
    if folder.status() in ENDED and pred_probs is None and not draw:
        parts.append(held_out(load_trained(run), splits))

    given = torch.cat([part.given for part in parts])
    free = torch.cat([part.free for part in parts])
    right = torch.cat([part.evidence.posterior.prob_of(part.given) for part in parts])
    rival = torch.cat([part.evidence.posterior.rival(part.given)[1] for part in parts])
    proposals = (
        draw_to_verify(parts[0].evidence.about(given), free, limit)
        if draw
        else Proposals(torch.where(free, rival, given), -right, 0.0, "audit")
    )  # 1 - right rounds to 1 for many labels, so the ranking uses `right`
    places = [(part, i) for part in parts for i in range(len(part.given))]
    ranked = suggestions(proposals, given, 1 - right, limit)
    return [_suspect(splits, *places[found.sample]) for found in ranked], splits.classes


def _suspect(splits: Splits, part: Part, i: int) -> Suspect:
    split, sample = part.places[i]
    data, one = splits.parts()[split], torch.tensor([i])
    given, evidence = part.given[one], part.evidence
    posterior, predictions = evidence.posterior.rows(one), evidence.predictions.rows(one)
    wrong = 1 - float(posterior.prob_of(given))
    rival = posterior.rival(given)[1]
    label, suggested = splits.classes[int(given)], splits.classes[int(rival)]
    as_rival, as_given = (float(predictions.prob_of(y)) for y in (rival, given))
    why = (
        f"wrong with probability {wrong:.0%}: predicted as {suggested} ({as_rival:.0%}), "
        f"as {label} ({as_given:.0%})"
    )
    if part.now[i] != part.given[i]:
        why += f"; the run relabeled it as {splits.classes[int(part.now[i])]}"
    row = Row(sample, split, data.source(sample), label, suggested, "", data.content(sample))
    return Suspect(row, wrong, why, data.images[sample])


def training(run: RunFolder, splits: Splits, pred_probs: Path | None) -> Part:
    """Judge the training samples by the run's own predictions, or by those of a file."""
    given, classes = splits.train.labels, len(splits.classes)
    ledger, state = run.uerm(given, classes)
    with refusing(f"--run {run.path}: uerm.safetensors is damaged"):
        seen = state["predictions.seen"].view(len(given)) > 0
        predictions = Distribution(state["predictions.mean"].view(len(given), classes))
    if pred_probs is not None:
        predictions = _read_probabilities(pred_probs, predictions.probabilities.shape)
        seen = predictions.probabilities.any(1)
    elif not seen.any():
        hint = f"they begin at the end of the warm-up; unmuddle train --resume {run.path} continues"
        raise UsageError(
            f"--run {run.path}: has no predictions of training samples"
            + ("" if run.status() in ENDED else f"; {hint}")
        )
    elif changed := run.changed(splits.train):
        left_out = [splits.train.source(i) for i in changed]
        tell_left_out({"training image, changed since the run began": left_out})
        seen[changed] = False
    now, verified = ledger.current_labels, seen & ledger.human_verified()
    evidence = gather_evidence(predictions, given, classes, current=now, verified=verified)
    places = [("train", i) for i in range(len(given))]
    return Part(places, given, now, evidence, seen & ~ledger.fixed())


def held_out(trained: Trained, splits: Splits) -> Part:
    """Judge validation and test samples by the network, which was not trained on them."""
    decisions = trained.folder.decisions(splits)
    decided = {d[:2] for d in decisions.found} if decisions is not None else set()
    if decisions is not None:
        decisions.apply(splits.parts())
    places: list[tuple[str, int]] = []
    predicted: list[tuple[Tensor, Tensor]] = []
    for name in ("val", "test"):
        part = as_input(trained, splits.parts()[name])
        places += [(name, i) for i in range(len(part))]
        predicted.append(predict(*prepared(trained, part)))
    probabilities, given = (torch.cat(tensors) for tensors in zip(*predicted, strict=True))
    evidence = gather_evidence(Distribution(probabilities), given, len(splits.classes))
    free = torch.tensor([place not in decided for place in places])
    return Part(places, given, given, evidence, free)


def _read_probabilities(path: Path, shape: torch.Size) -> Distribution:
    with refusing(f"--pred_probs {path}"):
        found = np.load(path, allow_pickle=False)
        if found.dtype.kind != "f" or found.shape != shape:
            got = f"{found.dtype} {found.shape}"
            raise ValueError(f"expected floats (n, K) = {tuple(shape)}, got {got}")
        sums = found.sum(1)
        right = (found >= 0).all(1) & ((abs(sums - 1) < 1e-3) | (sums == 0))
        if not right.all():
            row = right.argmin()
            got = f"{found[row].tolist()!s:.60} in row {row}"
            raise ValueError(f"expected probabilities that add up to 1 in each row, got {got}")
    return Distribution(torch.from_numpy(found).float())
