"""Options of `unmuddle train`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.paths import user_path

PARTS = ("supcon", "arm", "published_arm", "uerm")
_AT_LEAST = {
    "epochs": 1, "batch_size": 2, "accumulate": 1, "workers": 0, "freeze_epochs": 0, "views": 1,
    "image_size": 8, "lr_backbone": 0, "weight_decay": 0, "supcon_weight": 0,
}  # fmt: skip


@dataclass
class TrainConfig:
    """Train a classifier on images with ambiguous labels.

    Args:
        data: synthetic[:N], digits, or NAME:PATH; NAME: folder rafdb ferplus affectnet[7] fer2013
        noise: none, symmetric:P, pair:P, file:CSV (name, label) or file:TXT (RAF-DB's format)
        labels: CSV of accepted and rejected labels from unmuddle audit, or relabeled.csv of a run
        backbone: small, mobilefacenet, a timm model name, torchvision/NAME, or MODULE:CALLABLE
        sampler: draw each sample once per epoch, or all classes equally often
        parts: comma-separated: supcon, arm or published_arm, uerm; none: cross-entropy only
        targets: train on labels, or on the distribution of the annotators' votes
        out: run folder to write; default: runs/DATA-PARTS-TIME
        epochs: number of passes over the training samples
        batch_size: samples per batch, over all processes
        views: augmented views per sample in a batch; default: 2 with supcon, 1 without
        augment: strength of all augmentations except mirroring, from 0 to 1
        accumulate: number of batches to accumulate gradients over before each optimizer step
        lr: peak learning rate of AdamW's one-cycle schedule
        lr_backbone: peak learning rate of the backbone; default: lr, or lr / 10 if pretrained
        freeze_epochs: number of initial epochs during which the backbone is frozen
        label_smoothing: amount of label smoothing, from 0 to 1
        weight_decay: weight decay of AdamW
        image_size: image side length in pixels; default: the data set's own, for folder at most 224
        pretrained: load the backbone's pretrained weights from timm or torchvision
        skip_unreadable: leave out images that cannot be read; RUN/left_out.csv lists them
        weights: backbone weights: a .safetensors file, or a state dict saved with torch.save
        average: decay of the exponential moving average of the weights, which is evaluated
        supcon_weight: weight of the contrastive loss relative to the cross-entropy
        temperature: temperature of the contrastive loss
        relabel_policy: UERM's relabeling policy
        relabel_estimator: UERM's uncertainty estimator
        relabel_evidence: predictions from averaged weights once per epoch, or from batches
        relabel_loss: leave out relabeled samples, or keep all and correct the loss for label noise
        warmup: fraction of the epochs before UERM may relabel
        seed: seed of weight initialization, label noise, sample order and augmentation
        precision: mixed precision of the network; losses are computed in fp32
        compile: compile the network with torch.compile; the first step takes about a minute
        workers: number of data loading processes; 0: load in the training process
        tracker: also log the metrics of each epoch to RUN/tensorboard
    """

    data: str = "synthetic"
    noise: str = "none"
    labels: str | None = None
    backbone: str = "small"
    sampler: Literal["none", "balanced"] = "none"
    parts: str = "supcon,uerm"
    targets: Literal["labels", "votes"] = "labels"
    out: str | None = None
    epochs: int = 15
    batch_size: int = 32
    views: int | None = None
    augment: float = 1.0
    accumulate: int = 1
    lr: float = 2e-3
    lr_backbone: float | None = None
    freeze_epochs: int = 0
    label_smoothing: float = 0.0
    weight_decay: float = 0.05
    image_size: int | None = None
    skip_unreadable: bool = False
    pretrained: bool = False
    weights: str | None = None
    average: float = 0.995
    supcon_weight: float = 0.5
    temperature: float = 0.1
    relabel_policy: Literal["bayes", "ema_margin", "scn", "scn_all"] = "bayes"
    relabel_estimator: Literal["mislabeled", "attention"] = "mislabeled"
    relabel_evidence: Literal["averaged", "batches"] = "averaged"
    relabel_loss: Literal["weighted", "corrected"] = "weighted"
    warmup: float = 0.4
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    workers: int = 0
    tracker: Literal["none", "tensorboard"] = "none"

    def anywhere(self) -> "TrainConfig":
        """Return a copy whose input paths are absolute."""

        def absolute(text: str | None) -> str | None:
            return None if text is None else str(Path(text).expanduser().absolute())

        def absolute_after_colon(text: str) -> str:
            kind, colon, path = text.partition(":")
            is_path = colon and kind not in ("synthetic", "symmetric", "pair")
            return f"{kind}:{absolute(path)}" if is_path else text

        return replace(
            self,
            data=absolute_after_colon(self.data),
            noise=absolute_after_colon(self.noise),
            labels=absolute(self.labels),
            weights=absolute(self.weights),
        )

    def chosen_parts(self) -> frozenset[str]:
        """Return the parts as a set.

        Raises:
            UsageError: a part is unknown, or two parts are mutually exclusive.
        """
        names = frozenset(name.strip() for name in self.parts.split(",")) - {"none"}
        if unknown := names - {*PARTS}:
            raise UsageError(
                f"--parts {self.parts}: unknown part {min(unknown)!r}; expected none or a "
                f"comma-separated choice of {', '.join(PARTS)}"
            )
        if {"arm", "published_arm"} <= names:
            raise UsageError(f"--parts {self.parts}: choose one of arm and published_arm")
        return names

    def run_path(self) -> Path:
        """Return the run folder. By default, it is named after the data, the parts and the time."""
        if self.out is not None:
            return user_path("--out", self.out)
        data = self.data.partition(":")[0]
        moment = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        return Path("runs") / f"{data}-{self.parts.replace(',', '-')}-{moment}"

    def number_of_views(self) -> int:
        """Return the number of augmented views per sample in a batch."""
        return self.views or 1 + ("supcon" in self.chosen_parts())

    def first_relabeling(self) -> int:
        """Return the epoch after which UERM may first relabel.

        Without UERM, this epoch lies after the last one.
        """
        if "uerm" not in self.chosen_parts():
            return self.epochs + 1
        return round(self.warmup * self.epochs)

    def backbone_rate(self) -> float:
        """Return the peak learning rate of the backbone."""
        if self.lr_backbone is not None:
            return self.lr_backbone
        return self.lr / 10 if self.pretrained or self.weights else self.lr

    def check(self) -> None:
        """Raise a UsageError that names the first invalid value."""
        self.chosen_parts()
        for name, least in _AT_LEAST.items():
            self._expect(name, f"at least {least}", lambda value, least=least: value >= least)
        for name in ("lr", "temperature"):
            self._expect(name, "more than 0", lambda value: value > 0)
        for name in ("warmup", "augment", "label_smoothing"):
            self._expect(name, "a number from 0 to 1", lambda value: 0 <= value <= 1)
        self._expect("average", "0 <= average < 1", lambda value: 0 <= value < 1)
        self._expect("seed", "0 <= seed < 2**32", lambda value: 0 <= value < 2**32)
        changes_labels = "uerm" in self.chosen_parts() or self.noise != "none" or self.labels
        if self.targets == "votes" and changes_labels:
            raise UsageError(
                "--targets votes: does not train on labels; leave out uerm, --noise and --labels"
            )
        if self.relabel_loss == "corrected" and (self.targets == "votes" or self.label_smoothing):
            raise UsageError(
                "--relabel_loss corrected: cannot be combined with --label_smoothing or "
                "--targets votes"
            )
        if self.pretrained and self.weights:
            raise UsageError("--pretrained, --weights: give one of the two, not both")

    def _expect(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise UsageError(f"--{name}: expected {expected}, got {value}")
