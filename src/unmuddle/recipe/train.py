"""Training step, epoch and run of the reference recipe."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.display import Display
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.evaluate import Score
from unmuddle.recipe.processes import average_gradients, reduced
from unmuddle.recipe.record import Record
from unmuddle.recipe.run_folder import ENDED, RunFolder
from unmuddle.recipe.training import Training, build_accelerator


def train(
    config: TrainConfig,
    console: Console | None = None,
    *,
    resume: bool = False,
    labels: str | None = None,
    pause_after: int | None = None,
) -> Path:
    """Train a classifier, test its best epoch, and return the run folder.

    The best epoch is selected on the validation split. The last epoch is tested too, but does not
    affect the selection. With several processes (`torchrun`, `accelerate launch`), each process
    takes its share of every batch.

    `Ctrl-C` ends training early. The run folder then holds everything up to the last complete
    epoch, the status in `summary.json` is "interrupted", and the test split has not been used.

    Args:
        config: all options.
        console: console to print progress to.
        resume: whether to continue the run in `config.out`, however it was stopped. On a CPU, the
            result is bitwise identical to that of a run that was never stopped.
        labels: with `resume`, file of decisions about labels to use from now on.
        pause_after: number of complete epochs at which to stop; `resume` continues.

    Raises:
        UsageError: an option is invalid or cannot be satisfied. Nothing is written in this case.
    """
    if labels is not None:
        config = replace(config, labels=labels)
    config.check()
    run = RunFolder(config.run_path())
    if not resume:
        run.check_free()
    accelerator = build_accelerator(config, run.path)
    console = console or Console(emoji=False)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    if resume and run.status() in ENDED:
        if labels is not None:
            raise UsageError(f"--labels {labels}: the run has ended; start another one with it")
        console.print(f"--resume {run.path}: has ended already", markup=False)
    else:
        t = Training(config, run, accelerator, console, resume=resume, labels=labels)
        if pause_after is not None and not t.progress.epoch < pause_after < config.epochs:
            raise UsageError(
                f"--pause_after {pause_after}: expected less than --epochs, {config.epochs}, and "
                f"more than the {t.progress.epoch} epochs that are complete"
            )
        train_epochs(t, pause_after)
    return run.path


def train_epochs(t: Training, pause_after: int | None = None) -> None:
    """Train the remaining epochs, or pause. After all epochs, test. Write the run folder."""
    record, status, tests = Record(t), "finished", dict[str, Score]()
    record.begin()
    try:
        with Display(t.console, t.config.epochs, len(t.loaders.train), t.progress.epoch) as display:
            for epoch in range(t.progress.epoch + 1, (pause_after or t.config.epochs) + 1):
                metrics = train_epoch(t, epoch, display)
                if metrics is None:
                    status = "diverged"
                    t.console.print(f"epoch {epoch}: the loss is not finite; try a lower --lr")
                    break
                record.end_epoch(metrics)
                display.epoch(metrics)
        if status == "finished" and t.progress.epoch < t.config.epochs:
            status = "paused"
            hint = f"paused; unmuddle train --resume {t.run.path} continues it"
            t.console.print(hint, markup=False, soft_wrap=True)
        elif status == "finished":
            record.save_last()
            tests = test(t)
            record.save_snapshot()
    except KeyboardInterrupt:
        status = "interrupted"
        tests.clear()
        record.undo_epoch()
    record.end(status, tests)


def train_epoch(t: Training, epoch: int, display: Display) -> dict[str, float | None] | None:
    """Train for one epoch, relabel and validate.

    Returns:
        The metrics, or `None` if the loss is not finite.
    """
    began = time.perf_counter()
    t.start_epoch(epoch)
    loss_sum, right, seen = torch.zeros(3, device=t.accelerator.device).unbind()
    for batch, (images, _, ids) in enumerate(t.loaders.train):
        step = training_step(t, images, ids, (epoch - 1) * len(t.loaders.train) + batch)
        loss_sum += step.loss * step.views
        right += step.right
        seen += step.views
        display.step(epoch, step.loss)
    sums = reduced(torch.stack([loss_sum, right, seen]), t.accelerator, "sum").tolist()
    seconds = time.perf_counter() - began
    train_loss, train_accuracy = sums[0] / sums[2], sums[1] / sums[2]
    if not math.isfinite(train_loss):
        return None
    relabeled = relabel(t, epoch)
    validation = t.score(t.loaders.val)
    t.progress.seconds += time.perf_counter() - began
    t.progress.end_epoch(epoch, validation.accuracy, t.average.module)
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_accuracy": validation.accuracy,
        "val_mean_class_accuracy": validation.mean_class_accuracy,
        "relabeled": relabeled,
        "labels_right": t.labels_right(),
        "seconds": t.progress.seconds,
        "samples_per_second": sums[2] / t.views / seconds,
    }


class Step(NamedTuple):
    """Result of a training step.

    Attributes:
        loss: loss of the batch.
        right: number of predictions that agree with the labels.
        views: number of views in the batch.
    """

    loss: Tensor
    right: Tensor
    views: int


def training_step(t: Training, images: Tensor, ids: Tensor, number: int) -> Step:
    """Train on the images `(N, 3, H, W)` of the samples `ids` `(N,)`.

    `loss = sum_i w_i CE(logits_i, y_i) / sum_i w_i + regularizer
    + supcon_weight · SupCon(embeddings, w y, weight=w)`

    UERM looks up labels `y` and weights `w` by `ids`, and changes labels between epochs. With
    `targets="votes"`, `y` is the distribution of the annotators' votes. With
    `relabel_loss="corrected"`, the first term is the mean of `out.corrected_cross_entropy`.
    """
    t.seed_step(number)
    images, ids = t.augment(images, number), ids.repeat_interleave(t.views)
    with t.accelerator.accumulate(t.network):
        logits, features, embeddings = t.network(images)
        out = t.uerm(features, logits, ids, observe=t.config.relabel_evidence == "batches")
        y = out.targets if t.votes is None else t.votes[ids]  # (N · views, K)
        if t.config.relabel_loss == "corrected":
            loss = out.corrected_cross_entropy(logits).mean()
        else:
            losses = cross_entropy(
                logits, y, reduction="none", label_smoothing=t.config.label_smoothing
            )
            loss = out.weighted_mean(losses, gather=True)
        loss = loss + out.regularizer
        if embeddings is not None:
            views = embeddings.unflatten(0, (-1, t.views))  # (N, views, D)
            y, w = y[:: t.views], out.weight[:: t.views]  # one row per sample
            # A label with weight 0 pulls no samples together.
            loss = loss + t.config.supcon_weight * t.supcon(views, w[:, None] * y, weight=w)
        t.accelerator.backward(loss)
        average_gradients(t.uerm, t.accelerator)  # UERM is outside DistributedDataParallel
        t.optimizer.step()
        t.schedule.step()
        t.optimizer.zero_grad()
    if t.accelerator.sync_gradients:
        t.update_running_mean()
    return Step(loss.detach(), (logits.argmax(1) == out.labels).sum(), len(ids))


def relabel(t: Training, epoch: int) -> int:
    """Relabel, and return the number of relabeled samples.

    With `relabel_evidence="averaged"`, UERM first observes the predictions of the averaged weights
    for all training samples. This happens after the warm-up and after the last epoch.
    """
    if t.config.relabel_evidence == "averaged" and (
        epoch >= t.config.first_relabeling() or epoch == t.config.epochs
    ):
        t.observe()
    return len(t.uerm.end_epoch())


def test(t: Training) -> dict[str, Score]:
    """Score the last epoch and the best epoch on the test split.

    The last epoch is what to expect without clean validation labels.
    """
    last = t.score(t.loaders.test)
    t.average.module.load_state_dict(t.progress.best)
    return {"test_last_epoch": last, "test": t.score(t.loaders.test)}
