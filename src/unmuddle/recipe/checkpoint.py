"""Training checkpoint in one file."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmuddle.recipe.atomic import write_whole
from unmuddle.recipe.errors import refusing


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
        parts: modules, optimizer, schedule and gradient scaler by name.
    """

    parts: dict[str, Any]

    def save(self, path: Path, progress: Progress) -> None:
        """Write the state and the progress to a file atomically."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        file = io.BytesIO()  # torch.save does not say why a file cannot be written
        torch.save(state | {"progress": vars(progress)}, file)
        write_whole(path, lambda partial: partial.write_bytes(file.getvalue()))

    def load(self, path: Path) -> Progress:
        """Load the state from a file, and return the progress.

        Raises:
            UsageError: the file cannot be read, or belongs to another run.
        """
        with refusing(f"{path}: cannot be resumed from"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            return Progress(**state["progress"])
