"""The reference recipe, top to bottom."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from timm.utils.model_ema import ModelEmaV3
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision.transforms import v2

from unmuddle.recipes.backbones import build_backbone
from unmuddle.recipes.config import TrainConfig
from unmuddle.recipes.data import LabeledImages, load_data
from unmuddle.recipes.data.duplicates import describe, find_duplicates
from unmuddle.recipes.data.noise import add_noise, check_noise
from unmuddle.recipes.decisions import read_decisions
from unmuddle.recipes.errors import UsageError
from unmuddle.recipes.evaluate import Score, evaluate, observe
from unmuddle.recipes.images import augment
from unmuddle.recipes.model import Classifier
from unmuddle.recipes.paths import user_path
from unmuddle.recipes.run_folder import RunFolder, write_whole
from unmuddle.recipes.sample_sheet import sample_sheet
from unmuddle.supcon import SupConLoss
from unmuddle.uerm import UERM


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Train, select the epoch on the validation split, test it; returns the run folder.

    The last epoch is tested too, and selects nothing.

    `Ctrl-C` ends training early: the run folder then holds everything up to the last whole epoch,
    `summary.json` says "interrupted", and the test split has not been touched.

    Raises:
        UsageError: the config asks for something that cannot be done; nothing is written then.
    """
    console = console or Console()
    config.check()
    parts = config.chosen_parts()
    check_noise(config.noise)
    run_path = _run_path(config)
    RunFolder.check_free(run_path)
    if config.precision == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; on a CPU use bf16")
    accelerator = Accelerator(mixed_precision=config.precision)
    if accelerator.num_processes > 1:
        raise UsageError("training in several processes is not supported")
    set_seed(config.seed)

    # Data: noise goes into the training labels alone, and the labels before it are the truth.
    splits = load_data(config.data, image_size=config.image_size, seed=config.seed)
    num_classes = len(splits.classes)
    copies = find_duplicates(splits)
    training = splits.train
    add_noise(training, splits.classes, config.noise, config.seed)
    decided = None
    if config.labels is not None:
        decided = read_decisions(user_path("--labels", config.labels), training, splits.classes)
        console.print(f"--labels {config.labels}: {len(decided[0])} decisions", markup=False)
    size = splits.image_size
    views = 1 + ("supcon" in parts)
    for split in (training, splits.val, splits.test):
        split.transform = v2.Resize((size, size), antialias=True)
    loaders = [
        _training_loader(training, config, num_classes),
        _loader(training, config),
        _loader(splits.val, config),
        _loader(splits.test, config),
    ]

    # Model: the parts stand beside one another; each can be left out.
    backbone = build_backbone(
        config.backbone, size, pretrained=config.pretrained, weights=config.weights
    )
    model = Classifier(backbone, num_classes, arm="arm" in parts, supcon="supcon" in parts)
    model.to(memory_format=torch.channels_last)  # a fifth faster on CPUs, tensor cores want it
    # The mean of the last weights predicts better than the weights of any one step.
    average = ModelEmaV3(model, decay=config.average, use_warmup=True)
    supcon = SupConLoss(config.temperature)
    # Without the part, warm-up never ends: labels stay as they are and every weight is 1.
    relabels, warmup = "uerm" in parts, round(config.warmup * config.epochs)
    uerm = UERM(
        training.labels,
        num_classes,
        estimator=config.relabel_estimator if relabels else "odds",
        policy=config.relabel_policy,
        outcome=config.relabel_outcome,
        warmup_epochs=warmup if relabels else config.epochs + 1,
        feature_dim=model.feature_dim,
    )
    if decided is not None:
        uerm.ledger.decide(*decided)
    parameters = [*model.parameters(), *uerm.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * len(loaders[0])
    )
    model, uerm, optimizer, schedule, *loaders = accelerator.prepare(
        model, uerm, optimizer, schedule, *loaders
    )
    train_loader, known_loader, val_loader, test_loader = loaders
    average.to(accelerator.device)

    run = RunFolder.create(run_path, config)
    sheet = sample_sheet(training, training.labels, splits.classes)
    write_whole(run.path / "samples.png", partial(sheet.save, format="PNG"))
    run.save_samples(training, splits.classes)
    if copies:
        run.save_duplicates(copies)
        console.print(f"{describe(copies)}: {run.path / 'duplicates.csv'}", soft_wrap=True)
    run.save_relabeling(uerm)
    console.print(
        f"{config.data}: {len(training)} training, {len(splits.val)} validation, "
        f"{len(splits.test)} test images of {num_classes} classes; {config.backbone} with "
        f"{config.parts}, feature map {backbone.channels} x {backbone.map_size[0]} x "
        f"{backbone.map_size[1]}, on {accelerator.device}; run folder {run.path}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )

    best_accuracy, best_epoch, best_state = -1.0, 0, {}
    status, started = "finished", time.perf_counter()
    tests: dict[str, Score] = {}
    try:
        with _progress(console, config.epochs * len(train_loader)) as (progress, task):
            for epoch in range(1, config.epochs + 1):
                model.train()
                uerm.train()
                loss_sum, right, seen = torch.zeros(3, device=accelerator.device).unbind()
                for step, (images, _, ids) in enumerate(train_loader):
                    ids = ids.repeat_interleave(views)
                    images = augment(images.repeat_interleave(views, 0), mirror=splits.mirror)
                    logits, features, embeddings = model(images)
                    labels, targets, weight, _, regularizer = uerm(
                        features, logits, ids, observe=config.relabel_evidence == "batches"
                    )
                    losses = cross_entropy(logits, targets, reduction="none")
                    loss = (weight * losses).sum() / weight.sum().clamp(min=1e-6) + regularizer
                    if embeddings is not None:
                        pairs = embeddings.unflatten(0, (-1, views))
                        loss = loss + config.supcon_weight * supcon(pairs, labels[::views])
                    accelerator.backward(loss)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    average.update(accelerator.unwrap_model(model), schedule.scheduler.last_epoch)

                    loss_sum += loss.detach() * len(ids)
                    right += (logits.argmax(1) == labels).sum()
                    seen += len(ids)
                    if step % 10 == 0:  # reading the loss waits for the device
                        progress.update(task, epoch=epoch, loss=f"{loss.item():.3f}")
                    progress.advance(task)

                if not loss_sum.isfinite():
                    status = "diverged"
                    console.print(f"epoch {epoch}: the loss is not finite; try a lower --lr")
                    break
                if config.relabel_evidence == "averaged" and (
                    (relabels and epoch >= warmup) or epoch == config.epochs
                ):
                    with accelerator.autocast():
                        observe(uerm, average.module, known_loader, splits.mirror)
                relabeled = uerm.end_epoch()
                with accelerator.autocast():
                    val = evaluate(average.module, val_loader, num_classes)
                if val.accuracy > best_accuracy:
                    best_accuracy, best_epoch = val.accuracy, epoch
                    best_state = {
                        k: v.cpu().clone(memory_format=torch.contiguous_format)
                        for k, v in average.module.state_dict().items()
                    }
                    run.save_model(best_state)
                run.save_relabeling(uerm)
                progress.update(task, accuracy=f"{val.accuracy:.1%}")
                run.add_metrics(
                    epoch=epoch,
                    train_loss=float(loss_sum / seen),
                    train_accuracy=float(right / seen),
                    val_accuracy=val.accuracy,
                    val_mean_class_accuracy=val.mean_class_accuracy,
                    relabeled=len(relabeled),
                    labels_right=_labels_right(training, uerm),
                    seconds=time.perf_counter() - started,
                )
        if status == "finished":
            with accelerator.autocast():
                # What one gets without clean validation labels to select by.
                tests["test_last_epoch"] = evaluate(average.module, test_loader, num_classes)
                average.module.load_state_dict(best_state)
                tests["test"] = evaluate(average.module, test_loader, num_classes)
    except KeyboardInterrupt:
        status = "interrupted"

    summary: dict[str, Any] = {
        "status": status,
        "data": config.data,
        "noise": config.noise,
        "parts": config.parts,
        "backbone": config.backbone,
        "seed": config.seed,
        "classes": splits.classes,
        "image_size": size,
        "best_epoch": best_epoch,
        "val_accuracy": best_accuracy if best_epoch else None,
        "seconds": time.perf_counter() - started,
    }
    if training.true_labels is not None:
        scored = uerm.ledger.cpu().compare(training.true_labels)
        summary["relabeling"] = {name: _plain(value) for name, value in scored._asdict().items()}
    for split, score in tests.items():
        summary[split] = {name: _plain(value) for name, value in score._asdict().items()}
    run.save_summary(summary)
    return run.path


def _training_loader(data: LabeledImages, config: TrainConfig, classes: int) -> DataLoader[Any]:
    sampler = None
    if config.sampler == "balanced":  # every class as often as the others, by the labels as given
        counts = data.labels.bincount(minlength=classes)
        weights = (1 / counts.double())[data.labels]
        sampler = WeightedRandomSampler(weights.tolist(), len(data))
    return DataLoader(
        data,
        config.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        # A last batch of a few samples would upset batch normalisation.
        drop_last=len(data) >= config.batch_size,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


def _loader(data: LabeledImages, config: TrainConfig) -> DataLoader[Any]:
    return DataLoader(
        data,
        config.batch_size,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


def _run_path(config: TrainConfig) -> Path:
    if config.run is not None:
        return user_path("--run", config.run)
    data = config.data.partition(":")[0]
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{data}-{config.parts.replace(',', '-')}-{moment}"


@contextmanager
def _progress(console: Console, steps: int) -> Generator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  validation {task.fields[accuracy]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress, progress.add_task("", total=steps, epoch=1, loss="-", accuracy="-")


def _labels_right(data: LabeledImages, uerm: UERM) -> float | None:
    if data.true_labels is None:
        return None
    return float((uerm.ledger.labels().cpu() == data.true_labels).double().mean())


def _plain(value: float | torch.Tensor) -> Any:
    """As JSON knows it: a tensor as lists, an undefined figure as null."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return None if value != value else value
