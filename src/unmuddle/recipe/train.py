"""The reference recipe, top to bottom."""

import math
import time
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    set_seed,
)
from rich.console import Console
from timm.utils.model_ema import ModelEmaV3
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from unmuddle.recipe.backbones import build_backbone
from unmuddle.recipe.checkpoint import Checkpoint, Progress
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages, load_data
from unmuddle.recipe.data.duplicates import describe, find_duplicates
from unmuddle.recipe.data.files import listing
from unmuddle.recipe.data.noise import add_noise, check_noise
from unmuddle.recipe.decisions import read_decisions
from unmuddle.recipe.display import Display
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.evaluate import Score, evaluate, observe
from unmuddle.recipe.images import CHANCES, augment
from unmuddle.recipe.loaders import Use, ordered_loader, seed_for, training_loader
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.paths import user_path
from unmuddle.recipe.processes import average_gradients, check_shares, reduced, synchronize_norms
from unmuddle.recipe.run_folder import RunFolder, check_images, write_whole
from unmuddle.recipe.sample_sheet import sample_sheet
from unmuddle.recipe.snapshot import snapshot
from unmuddle.supcon import SupConLoss
from unmuddle.uerm import UERM, scn


def train(  # noqa: PLR0915  one flat loop, that reads like the recipe in a paper
    config: TrainConfig, console: Console | None = None, *, resume: bool = False
) -> Path:
    """Train, select the epoch on the validation split, test it; returns the run folder.

    The last epoch is tested too, and selects nothing. In several processes (`torchrun`,
    `accelerate launch`) each takes its part of every batch.

    `Ctrl-C` ends training early: the run folder then holds everything up to the last whole epoch,
    `summary.json` says "interrupted", and the test split has not been touched.

    Args:
        config: every option.
        console: to tell of progress on.
        resume: go on with `config.out` where it was stopped, in whatever way; on a CPU the result
            is bit for bit that of a run that was not.

    Raises:
        UsageError: the config asks for something that cannot be done; nothing is written then.
    """
    config.check()
    parts = config.chosen_parts()
    check_noise(config.noise)
    run, recorded = RunFolder(_run_path(config)), config.anywhere()
    if not resume:
        run.check_free()
    if config.precision == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; on a CPU use bf16")
    if config.tracker == "tensorboard" and find_spec("tensorboard") is None:
        raise UsageError("--tracker tensorboard: is not installed: pip install tensorboard")
    accelerator = _accelerator(config, run.path)
    is_first = accelerator.is_main_process
    console = (console or Console(emoji=False)) if is_first else Console(quiet=True)
    if resume and run.status() in ("finished", "diverged"):
        console.print(f"--resume {run.path}: has ended already", markup=False)
        return run.path
    set_seed(config.seed)

    # Data: noise goes into the training labels alone, and the labels before it are the truth.
    splits = load_data(
        config.data,
        image_size=config.image_size,
        seed=config.seed,
        skip_unreadable=config.skip_unreadable,
    )
    num_classes = len(splits.classes)
    copies = find_duplicates(splits)
    training = splits.train
    noise_left_out = add_noise(training, splits.classes, config.noise, config.seed)
    left_out = {**splits.left_out, **noise_left_out}
    decided = None
    is_resumed = resume and run.checkpoint.exists()
    if is_resumed:
        check_images("--resume", run.path, training)
    if config.labels is not None and not is_resumed:  # or they are in the checkpoint
        decided = read_decisions(user_path("--labels", config.labels), training, splits.classes)
        console.print(f"--labels {config.labels}: {len(decided.ids)} decisions", markup=False)
    votes = training.votes if config.targets == "votes" else None
    if config.targets == "votes" and votes is None:
        raise UsageError(f"--targets votes: {config.data} has no votes")
    size = splits.image_size
    views = config.views or 1 + ("supcon" in parts)
    for split in (training, splits.val, splits.test):
        split.transform = v2.Resize((size, size), antialias=True)
    check_shares(config.batch_size, len(training), accelerator.num_processes)
    loaders = [
        training_loader(training, config, num_classes),
        *(ordered_loader(split, config) for split in (training, splits.val, splits.test)),
    ]

    # Model: the parts stand beside one another; each can be left out.
    backbone = build_backbone(
        config.backbone, size, pretrained=config.pretrained, weights=config.weights
    )
    if backbone.unused:
        names = ", ".join(backbone.unused[:3]) + (", ..." if len(backbone.unused) > 3 else "")
        console.print(
            f"--weights {config.weights}: {len(backbone.unused)} tensors are not the backbone's "
            f"and are not used: {names}",
            soft_wrap=True,
            markup=False,
        )
    model = Classifier(backbone, num_classes, parts)
    if accelerator.num_processes > 1:
        synchronize_norms(model, accelerator.device)
    model.to(memory_format=torch.channels_last)  # a fifth faster on CPUs, tensor cores want it
    # The mean of the last weights predicts better than the weights of any one step.
    average = ModelEmaV3(model, decay=config.average, use_warmup=True)
    if config.compile:
        model.compile()
    supcon = SupConLoss(config.temperature, gather=accelerator.num_processes > 1)
    # Without the part, warm-up never ends: labels stay as they are and every weight is 1.
    relabels, warmup = "uerm" in parts, round(config.warmup * config.epochs)
    uerm = UERM(
        training.labels,
        num_classes,
        estimator=config.relabel_estimator if relabels else "mislabeled",
        policy=partial(scn, group="all")
        if config.relabel_policy == "scn_all"
        else config.relabel_policy,
        warmup_epochs=warmup if relabels else config.epochs + 1,
        feature_dim=model.feature_dim,
    )
    if decided is not None:
        decided.enter(uerm.ledger)
    optimizer = _optimizer(model, uerm, config)
    steps = -(-len(loaders[0]) // config.accumulate) * config.epochs
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    for module in (average, uerm):
        module.to(accelerator.device)
    if votes is not None:
        votes = votes.to(accelerator.device)
    checkpoint = Checkpoint(
        {"model": model, "average": average.module, "uerm": uerm},
        optimizer, schedule, accelerator.scaler,
    )  # fmt: skip
    trained, optimizer, schedule, *loaders = accelerator.prepare(
        model, optimizer, schedule, *loaders
    )
    train_loader, known_loader, val_loader, test_loader = loaders
    progress = checkpoint.load(run.checkpoint) if is_resumed else Progress()

    if is_first:
        if not resume:
            run.claim()
        run.create(recorded)
        run.rewind(progress.epoch)
        sheet = sample_sheet(training, training.labels, splits.classes)
        write_whole(run.path / "samples.png", partial(sheet.save, format="PNG"))
        run.save_samples(training, splits.classes)
        if left_out:
            run.save_left_out(left_out)
            lines = [*listing(left_out, shown=3), f"  all of them: {run.path / 'left_out.csv'}"]
            console.print("left out:", *lines, sep="\n", soft_wrap=True, markup=False)
        if copies:
            run.save_duplicates(copies)
            console.print(f"{describe(copies)}: {run.path / 'duplicates.csv'}", soft_wrap=True)
        run.save_relabeling(uerm, training, splits.classes)
        if progress.best:
            run.save_weights(progress.best)
    console.print(
        f"{config.data}: {len(training)} training, {len(splits.val)} validation, "
        f"{len(splits.test)} test images of {num_classes} classes; {config.backbone} with "
        f"{config.parts}, feature map {backbone.channels} x {backbone.map_size[0]} x "
        f"{backbone.map_size[1]}, on {accelerator.device}; run folder {run.path}"
        + (f", from epoch {progress.epoch + 1} on" if is_resumed else ""),
        soft_wrap=True,
        markup=False,
        highlight=False,
    )

    for name, split in (("validation", splits.val), ("test", splits.test)):
        for missing in split.without_images(splits.classes):
            console.print(f"{missing}: has no {name} image", markup=False)
    if config.tracker != "none":
        accelerator.init_trackers(config.tracker)
    status, started = "finished", time.perf_counter() - progress.seconds
    tests: dict[str, Score] = {}
    try:
        with Display(console, config.epochs, len(train_loader), progress.epoch) as display:
            for epoch in range(progress.epoch + 1, config.epochs + 1):
                began = time.perf_counter()
                model.is_frozen = epoch <= config.freeze_epochs
                trained.train()
                uerm.train()
                train_loader.set_epoch(epoch)
                loss_sum, right, seen = torch.zeros(3, device=accelerator.device).unbind()
                for step, (images, _, ids) in enumerate(train_loader):
                    number = (epoch - 1) * len(train_loader) + step
                    torch.manual_seed(
                        seed_for(Use.NETWORK, config.seed, number, accelerator.process_index)
                    )
                    ids = ids.repeat_interleave(views)
                    images = augment(
                        model.standardize(images).repeat_interleave(views, 0),
                        _chances(len(ids), config.seed, number, accelerator),
                        mirror=splits.mirror,
                        strength=config.augment,
                    )
                    with accelerator.accumulate(trained):
                        logits, features, embeddings = trained(images)
                        out = uerm(
                            features, logits, ids, observe=config.relabel_evidence == "batches"
                        )
                        targets = out.targets if votes is None else votes[ids]
                        losses = cross_entropy(
                            logits,
                            targets,
                            reduction="none",
                            label_smoothing=config.label_smoothing,
                        )
                        loss = out.weighted_mean(losses, gather=True) + out.regularizer
                        if embeddings is not None:
                            # A label that is not trusted pulls no samples together.
                            trust = out.weight[::views]
                            trusted = trust[:, None] * targets[::views]
                            pairs = embeddings.unflatten(0, (-1, views))
                            contrast = supcon(pairs, trusted, weight=trust)
                            loss = loss + config.supcon_weight * contrast
                        accelerator.backward(loss)
                        average_gradients(uerm, accelerator)
                        optimizer.step()
                        schedule.step()
                        optimizer.zero_grad()
                    if accelerator.sync_gradients:
                        average.update(model, schedule.scheduler.last_epoch)

                    loss_sum += loss.detach() * len(ids)
                    right += (logits.argmax(1) == out.labels).sum()
                    seen += len(ids)
                    display.step(epoch, loss)

                sums = reduced(torch.stack([loss_sum, right, seen]), accelerator, "sum").tolist()
                train_loss, train_accuracy = sums[0] / sums[2], sums[1] / sums[2]
                rate = sums[2] / views / (time.perf_counter() - began)
                if not math.isfinite(train_loss):
                    status = "diverged"
                    console.print(f"epoch {epoch}: the loss is not finite; try a lower --lr")
                    break
                if config.relabel_evidence == "averaged" and (
                    (relabels and epoch >= warmup) or epoch == config.epochs
                ):
                    with accelerator.autocast():
                        observe(uerm, average.module, known_loader, splits.mirror)
                relabeled = uerm.end_epoch()
                val = evaluate(average.module, val_loader, num_classes, accelerator)
                if val.accuracy > progress.best_accuracy:
                    progress.best_accuracy, progress.best_epoch = val.accuracy, epoch
                    progress.best = {
                        name: value.cpu().clone(memory_format=torch.contiguous_format)
                        for name, value in average.module.state_dict().items()
                    }
                progress.epoch, progress.seconds = epoch, time.perf_counter() - started
                entry = {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "val_accuracy": val.accuracy,
                    "val_mean_class_accuracy": val.mean_class_accuracy,
                    "relabeled": len(relabeled),
                    "labels_right": _labels_right(training, uerm),
                    "seconds": progress.seconds,
                    "samples_per_second": rate,
                }
                if is_first:
                    if progress.best_epoch == epoch:
                        run.save_weights(progress.best)
                    run.save_relabeling(uerm, training, splits.classes)
                    run.add_metrics(entry)
                    checkpoint.save(run.checkpoint, progress)
                accelerator.log({k: v for k, v in entry.items() if v is not None}, step=epoch)
                display.epoch(entry)
        if status == "finished":
            # The last epoch: what one gets without clean validation labels to select by.
            for name, weights in (("test_last_epoch", None), ("test", progress.best)):
                if weights is not None:
                    average.module.load_state_dict(weights)
                tests[name] = evaluate(average.module, test_loader, num_classes, accelerator)
            if is_first:
                run.save_snapshot(
                    snapshot(average.module, training, uerm.ledger, config.batch_size, config.seed)
                )
    except KeyboardInterrupt:
        status = "interrupted"
        tests.clear()
        if is_first and run.checkpoint.exists():  # of the epoch that was under way nothing stays
            progress = checkpoint.load(run.checkpoint)
            run.rewind(progress.epoch)
            run.save_weights(progress.best)
            run.save_relabeling(uerm, training, splits.classes)
        console.print(f"interrupted; unmuddle train --resume {run.path} goes on", markup=False)

    summary: dict[str, Any] = {
        "status": status,
        "data": recorded.data,
        "noise": recorded.noise,
        "parts": config.parts,
        "backbone": config.backbone,
        "seed": config.seed,
        "classes": splits.classes,
        "image_size": size,
        "best_epoch": progress.best_epoch,
        "val_accuracy": progress.best_accuracy if progress.best_epoch else None,
        "seconds": time.perf_counter() - started,
    }
    if training.true_labels is not None:
        scored = uerm.ledger.cpu().compare(training.true_labels)
        summary["relabeling"] = {name: _plain(value) for name, value in scored._asdict().items()}
    for split, score in tests.items():
        summary[split] = {name: _plain(value) for name, value in score._asdict().items()}
    if is_first:
        run.save_summary(summary)
        if status != "interrupted":
            run.checkpoint.unlink(missing_ok=True)
    if status != "interrupted":
        accelerator.end_training()
    return run.path


def _accelerator(config: TrainConfig, path: Path) -> Accelerator:
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or processes would not find each other
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=path,
        # A frozen backbone has no gradients.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=config.freeze_epochs > 0)
        ],
        # A batch is shared out; no sample is seen twice to make the shares even.
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, even_batches=False, non_blocking=True
        ),
    )


def _optimizer(model: Classifier, uerm: UERM, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a learning rate for the backbone and one for the rest."""
    rest = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [
        {"params": [*model.backbone.parameters()], "lr": config.backbone_rate()},
        {"params": [*rest, *uerm.parameters()], "lr": config.lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _chances(rows: int, seed: int, number: int, accelerator: Accelerator) -> torch.Tensor:
    """Return this rank's slice of the random numbers that augment the global batch."""
    random = torch.Generator().manual_seed(seed_for(Use.AUGMENTATION, seed, number))
    everyone = torch.rand(
        rows * accelerator.num_processes, CHANCES, generator=random, dtype=torch.float32
    )
    return everyone[rows * accelerator.process_index :][:rows]


def _run_path(config: TrainConfig) -> Path:
    if config.out is not None:
        return user_path("--out", config.out)
    data = config.data.partition(":")[0]
    moment = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return Path("runs") / f"{data}-{config.parts.replace(',', '-')}-{moment}"


def _labels_right(data: LabeledImages, uerm: UERM) -> float | None:
    if data.true_labels is None:
        return None
    return float((uerm.ledger.current_labels.cpu() == data.true_labels).double().mean())


def _plain(value: float | torch.Tensor) -> Any:
    """Convert to JSON types: a tensor to lists, an undefined figure to null."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return None if value != value else value
