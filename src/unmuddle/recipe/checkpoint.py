"""Training checkpoint in one safetensors file, with JSON in its header."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unmuddle.recipe.atomic import write_tensors
from unmuddle.recipe.errors import UsageError


@dataclass
class Progress:
    """Progress of a training run.

    Attributes:
        epoch: number of completed epochs.
        best_epoch: epoch with the best validation accuracy; 0 if there is none yet.
        best_accuracy: validation accuracy of the best epoch.
        seconds: training time so far in seconds.
        best: weights of the best epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    seconds: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def end_epoch(self, epoch: int, accuracy: float, model: nn.Module) -> None:
        """Record a completed epoch. Keep its weights if its validation accuracy is the best."""
        self.epoch = epoch
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, epoch
            self.best = {
                name: value.cpu().clone(memory_format=torch.contiguous_format)
                for name, value in model.state_dict().items()
            }


@dataclass
class Checkpoint:
    """State that training changes, apart from its progress.

    Random states are not included, because each step is seeded by its number and the run's seed.

    Attributes:
        modules: modules by name.
        optimizer: optimizer of their parameters.
        schedule: schedule of the learning rate.
        scaler: gradient scaler for fp16.
    """

    modules: dict[str, nn.Module]
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler | None = None

    def save(self, path: Path, progress: Progress) -> None:
        """Write the state and the progress to a file atomically."""
        tensors = {
            f"{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        tensors |= {f"best.{key}": value for key, value in progress.best.items()}
        optimizer = self.optimizer.state_dict()
        for number, state in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        told = {
            "progress": {k: v for k, v in asdict(progress).items() if k != "best"},
            "groups": optimizer["param_groups"],
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }
        # Copies, because safetensors rejects tensors that share memory or are not contiguous.
        copies = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in tensors.items()
        }
        header = {"state": json.dumps(told)}
        write_tensors(path, copies, header)

    def load(self, path: Path) -> Progress:
        """Load the state from a file, and return the progress.

        Raises:
            UsageError: the file cannot be read, or belongs to another run.
        """
        try:
            with safe_open(path, "pt") as file:
                told = json.loads(file.metadata()["state"])
            tensors = load_file(path)
            for name, module in self.modules.items():
                module.load_state_dict(_below(f"{name}.", tensors))
            self._load_optimizer(_below("optimizer.", tensors), told["groups"])
            self.schedule.load_state_dict(told["schedule"])
            if self.scaler and told["scaler"]:
                self.scaler.load_state_dict(told["scaler"])
            return Progress(**told["progress"], best=_below("best.", tensors))
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: cannot be resumed from: {error}") from error

    def _load_optimizer(self, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for key, value in tensors.items():
            number, _, name = key.partition(".")
            like = parameters[int(number)]
            # Same memory layout as the parameter, because the order of summation depends on it.
            laid_out = value if value.ndim == 0 else torch.empty_like(like).copy_(value)
            state.setdefault(int(number), {})[name] = laid_out
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
