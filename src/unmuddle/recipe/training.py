"""State of a training run, built from the options."""

import copy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, set_seed
from rich.console import Console
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unmuddle.recipe.backbones import Backbone, avoid_slow_bf16, build_backbone
from unmuddle.recipe.checkpoint import Checkpoint, Progress
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.evaluate import Score, evaluate, observe
from unmuddle.recipe.images import CHANCES, augment
from unmuddle.recipe.loaders import RngStream, ordered_loader, seed_for, training_loader
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.prepare import Prepared, prepare
from unmuddle.recipe.processes import check_shares, synchronize_norms
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.supcon import SupConLoss
from unmuddle.uerm import UERM, scn


class Loaders(NamedTuple):
    """Data loaders of the splits.

    Attributes:
        train: training samples in random order.
        known: all training samples in order.
        val: validation samples.
        test: test samples.
    """

    train: DataLoader[Any]
    known: DataLoader[Any]
    val: DataLoader[Any]
    test: DataLoader[Any]


@dataclass
class Training:
    """Components of a training run, on its device.

    Attributes:
        config: all options.
        run: run folder to write.
        console: console that prints only on the first process.
        accelerator: devices, processes and precision.
        data: splits, decisions about labels, and votes.
        backbone: backbone of the model.
        model: network without a wrapper.
        network: model to call; with several processes, wrapped in `DistributedDataParallel`.
        average: exponential moving average of the model's weights. It is evaluated because it
            predicts better than the weights of any single step.
        supcon: contrastive loss.
        uerm: module that holds the labels and their weights.
        optimizer: optimizer of the model and UERM.
        schedule: schedule of the learning rates.
        loaders: data loaders of the splits.
        checkpoint: state to resume from.
        progress: completed epochs and the best one.
        resume: whether an existing run is continued.
    """

    config: TrainConfig
    run: RunFolder
    console: Console
    accelerator: Accelerator
    data: Prepared
    backbone: Backbone
    model: Classifier
    network: nn.Module
    average: ModelEmaV3
    supcon: SupConLoss
    uerm: UERM
    optimizer: Any
    schedule: Any
    loaders: Loaders
    checkpoint: Checkpoint
    progress: Progress
    resume: bool

    @property
    def views(self) -> int:
        """Number of augmented views per sample."""
        return self.config.number_of_views()

    @property
    def votes(self) -> Tensor | None:
        """Distribution of the annotators' votes with `targets="votes"`, else `None`."""
        return self.data.votes

    def start_epoch(self, epoch: int) -> None:
        """Set the modules to training mode, and set the order of the samples."""
        self.model.is_frozen = epoch <= self.config.freeze_epochs
        self.network.train()
        self.uerm.train()
        self.loaders.train.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]

    def seed_step(self, number: int) -> None:
        """Seed the random numbers of the network in a step. A resumed run draws the same ones."""
        torch.manual_seed(
            seed_for(RngStream.NETWORK, self.config.seed, number, self.accelerator.process_index)
        )

    def augment(self, images: Tensor, number: int) -> Tensor:
        """Return augmented views. The views of an image are consecutive rows.

        Random numbers are drawn for all processes together, and each process takes its share.
        """
        images = self.model.standardize(images).repeat_interleave(self.views, 0)
        rows, processes = len(images), self.accelerator.num_processes
        random = torch.Generator().manual_seed(
            seed_for(RngStream.AUGMENTATION, self.config.seed, number)
        )
        chances = torch.rand(rows * processes, CHANCES, generator=random, dtype=torch.float32)
        return augment(
            images,
            chances[rows * self.accelerator.process_index :][:rows],
            mirror=self.data.splits.mirror,
            strength=self.config.augment,
        )

    def update_running_mean(self) -> None:
        """Update the moving average of the weights after a step."""
        self.average.update(self.model, self.schedule.scheduler.last_epoch)

    def observe(self) -> None:
        """Let UERM observe the predictions of the averaged weights for all training samples."""
        with self.accelerator.autocast():
            observe(self.uerm, self.average.module, self.loaders.known, self.data.splits.mirror)

    def score(self, loader: DataLoader[Any]) -> Score:
        """Score the averaged weights on a split."""
        classes = len(self.data.splits.classes)
        return evaluate(self.average.module, loader, classes, self.accelerator)

    def score_best(self) -> None:
        """Score the best weights so far again, since validation labels may have changed."""
        if self.progress.best:
            current = copy.deepcopy(self.average.module.state_dict())
            self.average.module.load_state_dict(self.progress.best)
            self.progress.best_accuracy = self.score(self.loaders.val).accuracy
            self.average.module.load_state_dict(current)

    def labels_right(self) -> float | None:
        """Return the fraction of current training labels that are right, `None` if unknown."""
        truth = self.data.splits.train.true_labels
        if truth is None:
            return None
        return float((self.uerm.ledger.current_labels.cpu() == truth).double().mean())


def build_training(
    config: TrainConfig,
    run: RunFolder,
    accelerator: Accelerator,
    console: Console,
    *,
    resume: bool = False,
    labels: str | None = None,
) -> Training:
    """Build a new or a resumed training run, without writing anything.

    `labels` is a file of decisions that a resumed run is to use from now on.

    Raises:
        UsageError: an option is invalid or cannot be satisfied.
    """
    is_resumed = resume and run.checkpoint.exists()
    set_seed(config.seed)

    data = prepare(config, run, is_resumed=is_resumed, labels=labels)
    training, classes = data.splits.train, data.splits.classes
    check_shares(config.batch_size, len(training), accelerator.num_processes)
    if data.votes is not None:
        data = data._replace(votes=data.votes.to(accelerator.device))
    loaders = (
        training_loader(training, config, len(classes)),
        *(ordered_loader(split, config) for split in (training, data.splits.val, data.splits.test)),
    )

    backbone = build_backbone(
        config.backbone,
        data.splits.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
    )
    if config.precision == "bf16" and accelerator.device.type == "cpu":
        avoid_slow_bf16(backbone.network)
    model = Classifier(backbone, len(classes), config.chosen_parts())
    if accelerator.num_processes > 1:
        synchronize_norms(model, accelerator.device)
    model.to(memory_format=torch.channels_last)  # 20 % faster on CPUs, preferred by tensor cores
    average = ModelEmaV3(model, decay=config.average, use_warmup=True)
    if config.compile:
        model.compile()
    uerm = _relabeler(config, training.labels, len(classes), model.feature_dim)
    optimizer = _optimizer(model, uerm, config)
    steps = -(-len(loaders[0]) // config.accumulate) * config.epochs
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    for module in (average, uerm):
        module.to(accelerator.device)
    parts = {"model": model, "average": average.module, "uerm": uerm}
    parts |= {"optimizer": optimizer, "schedule": schedule}
    checkpoint = Checkpoint(parts | ({"scaler": accelerator.scaler} if accelerator.scaler else {}))
    network, optimizer, schedule, *loaders = accelerator.prepare(
        model, optimizer, schedule, *loaders
    )
    progress = checkpoint.load(run.checkpoint) if is_resumed else Progress()
    training = Training(
        config, run, console, accelerator, data, backbone, model, network, average,
        SupConLoss(config.temperature, gather=accelerator.num_processes > 1),
        uerm, optimizer, schedule, Loaders(*loaders), checkpoint, progress, resume,
    )  # fmt: skip
    if data.decisions is not None:
        if data.decisions.enter(uerm.ledger, progress.epoch):
            uerm.relabel()
        training.score_best()
    return training


def build_accelerator(config: TrainConfig, path: Path) -> Accelerator:
    """Set up the devices and processes of a training run.

    Raises:
        UsageError: the device does not support an option, or a package is missing.
    """
    if config.precision == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; on a CPU use bf16")
    if config.tracker == "tensorboard" and find_spec("tensorboard") is None:
        raise UsageError("--tracker tensorboard: not installed; run pip install tensorboard")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise, processes do not find each other
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=path,
        # A frozen backbone has no gradients.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=config.freeze_epochs > 0)
        ],
        # Batches are split over the processes. No sample is repeated to make the shares even.
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, even_batches=False, non_blocking=True
        ),
    )


def _relabeler(config: TrainConfig, labels: Tensor, num_classes: int, feature_dim: int) -> UERM:
    """Return UERM.

    Without the part `uerm`, its warm-up never ends. The labels then stay as they are, and every
    weight is 1.
    """
    relabels, policy = "uerm" in config.chosen_parts(), config.relabel_policy
    return UERM(
        labels,
        num_classes,
        estimator=config.relabel_estimator if relabels else "mislabeled",
        policy=partial(scn, group="all") if policy == "scn_all" else policy,
        warmup_epochs=config.first_relabeling(),
        feature_dim=feature_dim,
    )


def _optimizer(model: Classifier, uerm: UERM, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with one learning rate for the backbone and another one for the rest."""
    rest = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [
        {"params": [*model.backbone.parameters()], "lr": config.backbone_rate()},
        {"params": [*rest, *uerm.parameters()], "lr": config.lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
