"""What somebody sees of a training: a bar on a terminal, a line an epoch in a log."""

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

EVERY = 10  # steps; reading the loss waits for the device


class Display:
    """Open while training runs.

    Args:
        console: to write on.
        epochs: in all.
        steps: of an epoch.
        done: epochs done before.
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
        self.count = 0

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, epoch: int, loss: Tensor) -> None:
        """Another step is done."""
        if self.count % EVERY == 0 and not self.bar.disable:
            self.bar.update(self.task, epoch=epoch, loss=f"{loss.item():.3f}")
        self.count += 1
        self.bar.advance(self.task)

    def epoch(self, entry: dict[str, Any]) -> None:
        """Another epoch is done."""
        self.bar.update(self.task, accuracy=f"{entry['val_accuracy']:.1%}")
        if self.bar.disable:
            self.console.print(
                f"epoch {entry['epoch']} of {self.epochs}: loss {entry['train_loss']:.4f}, "
                f"validation {entry['val_accuracy']:.2%}, relabeled {entry['relabeled']}, "
                f"{entry['samples_per_second']:.0f} samples/s, {entry['seconds']:.0f} s",
                highlight=False,
                soft_wrap=True,
            )
