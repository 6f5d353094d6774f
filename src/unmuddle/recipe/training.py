"""State of a training run, built from the options."""

import copy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, set_seed
from rich.console import Console
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader

from unmuddle.recipe.backbones import avoid_slow_bf16, build_backbone
from unmuddle.recipe.checkpoint import Checkpoint, Progress
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.evaluate import Score, evaluate, observe
from unmuddle.recipe.images import CHANCES, augment
from unmuddle.recipe.loaders import RngStream, ordered_loader, seed_for, training_loader
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.prepare import prepare
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


class Training:
    """Components of a new or a resumed training run, on its device.

    The constructor writes nothing.

    Args:
        config: all options.
        run: run folder to write.
        accelerator: devices, processes and precision.
        console: console that prints only on the first process.
        resume: whether an existing run is continued.
        labels: file of decisions that a resumed run is to use from now on.

    Attributes:
        views: number of augmented views per sample.
        data: splits, decisions about labels, and votes.
        votes: distribution of the annotators' votes with `targets="votes"`, else `None`.
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

    Raises:
        UsageError: an option is invalid or cannot be satisfied.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        accelerator: Accelerator,
        console: Console,
        *,
        resume: bool = False,
        labels: str | None = None,
    ) -> None:
        self.config, self.run, self.resume = config, run, resume
        self.accelerator, self.console = accelerator, console
        self.views = config.number_of_views()
        is_resumed = resume and run.checkpoint.exists()
        set_seed(config.seed)

        self.data = prepare(config, run, is_resumed=is_resumed, labels=labels)
        splits, classes = self.data.splits, len(self.data.splits.classes)
        check_shares(config.batch_size, len(splits.train), accelerator.num_processes)
        self.votes = self.data.votes
        if self.votes is not None:
            self.votes = self.votes.to(accelerator.device)
        self.order = torch.Generator()
        loaders = [
            training_loader(splits.train, config, classes, self.order),
            *(ordered_loader(part, config) for part in (splits.train, splits.val, splits.test)),
        ]

        size, weights = splits.image_size, config.weights
        self.backbone = build_backbone(
            config.backbone, size, pretrained=config.pretrained, weights=weights
        )
        if config.precision == "bf16" and accelerator.device.type == "cpu":
            avoid_slow_bf16(self.backbone.network)
        self.model = model = Classifier(self.backbone, classes, config.chosen_parts())
        if accelerator.num_processes > 1:
            synchronize_norms(model, accelerator.device)
        # 20 % faster on CPUs, preferred by tensor cores
        model.to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(model, decay=config.average, use_warmup=True)
        if config.compile:
            model.compile()
        self.supcon = SupConLoss(config.temperature, gather=accelerator.num_processes > 1)
        self.uerm = _relabeler(config, splits.train.labels, classes, model.feature_dim)
        optimizer = _optimizer(model, self.uerm, config)
        steps = -(-len(loaders[0]) // config.accumulate) * config.epochs
        rates = [group["lr"] for group in optimizer.param_groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        for module in (self.average, self.uerm):
            module.to(accelerator.device)
        parts = {"model": model, "average": self.average.module, "uerm": self.uerm}
        parts |= {"optimizer": optimizer, "schedule": schedule}
        parts |= {"scaler": accelerator.scaler} if accelerator.scaler else {}
        self.checkpoint = Checkpoint(parts)
        self.network, self.optimizer, self.schedule, *loaders = accelerator.prepare(
            model, optimizer, schedule, *loaders
        )
        self.loaders = Loaders(*loaders)
        self.progress = self.checkpoint.load(run.checkpoint) if is_resumed else Progress()
        if self.data.decisions is not None:
            if self.data.decisions.enter(self.uerm.ledger, self.progress.epoch):
                self.uerm.relabel()
            self.score_best()

    def start_epoch(self, epoch: int) -> None:
        """Set the modules to training mode, and set the order of the samples."""
        self.model.is_frozen = epoch <= self.config.freeze_epochs
        self.network.train()
        self.uerm.train()
        self.order.manual_seed(seed_for(RngStream.ORDER, self.config.seed, epoch))

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
        return None if truth is None else self.uerm.ledger.compare(truth).right_after


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
