"""Display of training progress: a bar on a terminal, lines in a log."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

EVERY = 10  # steps between updates; reading the loss waits for the device
SECONDS = 30.0  # between log lines within an epoch


class Display:
    """Display of training progress.

    Args:
        console: console to print to.
        epochs: total number of epochs.
        steps: number of steps per epoch.
        done: number of epochs that are already completed.
    """

    def __init__(self, console: Console, epochs: int, steps: int, done: int) -> None:
        self.console = console
        self.epochs = epochs
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[accuracy]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(
            "", total=epochs * steps, completed=done * steps, epoch=done + 1, loss="-", accuracy="-"
        )
        self.steps = steps
        self.count = 0
        self.spoke = time.monotonic()

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, epoch: int, loss: Tensor) -> None:
        """Count a step. In a log, print the progress of the epoch every 30 seconds."""
        if self.count % EVERY == 0 and not self.bar.disable:
            self.bar.update(self.task, epoch=epoch, loss=f"{loss.item():.3f}")
        self.count += 1
        self.bar.advance(self.task)
        if self.bar.disable and time.monotonic() - self.spoke > SECONDS:
            self._print(
                f"epoch {epoch}, step {(self.count - 1) % self.steps + 1} of {self.steps}: "
                f"loss {loss.item():.4f}"
            )

    def epoch(self, entry: dict[str, Any]) -> None:
        """Show the metrics of a completed epoch."""
        self.bar.update(self.task, accuracy=f"{entry['val_accuracy']:.1%}")
        if self.bar.disable:
            self._print(
                f"epoch {entry['epoch']} of {self.epochs}: loss {entry['train_loss']:.4f}, "
                f"validation {entry['val_accuracy']:.2%}, relabeled {entry['relabeled']}, "
                f"{entry['samples_per_second']:.0f} samples/s, {entry['seconds']:.0f} s"
            )

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
        self.spoke = time.monotonic()
