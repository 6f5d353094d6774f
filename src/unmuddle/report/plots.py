"""Plots of one run, written beside its files."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unmuddle.report.runs import RunFiles


def draw_plots(run: RunFiles) -> list[Path]:
    """Draw `curves.png` (if an epoch ended) and `confusion.png` (if the test was run)."""
    drawn: list[Path] = []
    if run.metrics:
        drawn.append(_save(_curves(run), run.path / "curves.png"))
    if "test" in run.summary:
        drawn.append(_save(_confusion(run), run.path / "confusion.png"))
    return drawn


def _curves(run: RunFiles) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, share_axes = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in run.metrics]
    loss_axes.plot(
        epochs, [entry["train_loss"] for entry in run.metrics], color="tab:blue", marker="."
    )
    loss_axes.set(xlabel="epoch", ylabel="training loss")
    for key, label, style in (
        ("train_accuracy", "training accuracy (on the labels trained on)", "tab:blue"),
        ("val_accuracy", "validation accuracy", "tab:orange"),
        ("labels_right", "training labels right", "tab:green"),
    ):
        values = [entry[key] for entry in run.metrics]
        if values[0] is not None:
            share_axes.plot(epochs, values, label=label, color=style, marker=".")
    best = run.summary["best_epoch"]
    share_axes.axvline(best, color="grey", linestyle=":", label=f"selected epoch {best}")
    share_axes.set(xlabel="epoch", ylim=(0, 1.02))
    share_axes.legend(fontsize=7, loc="lower right")
    title = f"{run.summary['data']}, noise {run.summary['noise']}: {run.summary['parts']}"
    figure.suptitle(title, parse_math=False)
    return figure


def _confusion(run: RunFiles) -> Figure:
    counts = np.array(run.summary["test"]["confusion"], dtype=float)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    classes = run.summary["classes"]
    side = 2.2 + 0.55 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"test accuracy {run.summary['test']['accuracy']:.1%}")
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        axes.text(
            column, row, f"{share:.0%}", ha="center", va="center", fontsize=8,
            color="white" if share > 0.5 else "black",
        )  # fmt: skip
    return figure


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)
    return path
