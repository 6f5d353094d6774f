"""Plots of runs as SVG in the colours of the surrounding page, light or dark."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from unmuddle.report.runs import RunFiles, Samples

_INK = "#010203"  # placeholder for the text colour of the page
_COLORS = (  # readable on dark and on light backgrounds
    "#3d8fe0", "#e8852d", "#3aa655", "#d9534f", "#9a6fd0",
    "#a0745f", "#d76db0", "#8a8f98", "#b5ae2a", "#28b3c4",
)  # fmt: skip
_STYLE: dict[Any, Any] = {
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": _INK for part in ("edge", "label")},
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=_COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "unmuddle",  # the same ids in every file
    "text.parse_math": False,  # show a $ in a name as it is
}
# From transparent to blue: the page shows through.
_BLUES = ListedColormap([(0.2, 0.5, 0.85, share) for share in np.linspace(0, 0.75, 256)])
_WITH_NUMBERS = 15  # maximum number of classes for numbers in cells and for a legend
_MOST_NAMED = 40  # maximum number of classes for names at the axes
FEWEST_MAPPED = 10  # minimum number of samples for a map


def draw(plot: Callable[[Axes], None], width: float = 4.8, height: float = 3.4) -> str:
    """Draw one plot as SVG. Its preferred size is given in inches of 72 points."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings(), io.StringIO() as file:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.subplots())
        FigureCanvasSVG(figure)
        figure.savefig(
            file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub("font-family: [^;]*; ", "", text)  # use the font of the page
    # Remove ids that nothing refers to and that other plots also have.
    return re.sub(r' id="[A-Za-z]+(_\w+)?_\d+"', "", text)


def color(number: int) -> str:
    """Return the colour of a run."""
    return _COLORS[number % len(_COLORS)]


def curves(runs: Sequence[RunFiles], *keys: str, share: bool = False) -> str | None:
    """Plot metrics by epoch, with one colour per run: the first solid, the second dashed.

    A ring marks the best epoch of a run. Return `None` if no run has the first metric.
    """
    known = [run for run in runs if run.metrics and run.metrics[0][keys[0]] is not None]
    if not known:
        return None

    def plot(axes: Axes) -> None:
        for run in known:
            of_run = color(runs.index(run))
            epochs = [entry["epoch"] for entry in run.metrics]
            for key, style in zip(keys, (".-", ".--"), strict=False):
                axes.plot(epochs, [entry[key] for entry in run.metrics], style, color=of_run)
            if best := run.summary["best_epoch"]:
                value = run.metrics[epochs.index(best)][keys[0]]
                axes.plot(best, value, "o", color=of_run, fillstyle="none", markersize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1))

    return draw(plot)


def matrix(
    counts: np.ndarray, classes: Sequence[str], rows: str, columns: str, *, shares: bool = True
) -> str:
    """Plot counts `(K, K)` as a heat map, by their share of each row or as they are."""
    totals = counts.sum(1, keepdims=True).clip(min=1) if shares else max(counts.max(), 1)
    values = counts / totals
    size = len(classes)
    side = 1.9 + 0.33 * min(size, _WITH_NUMBERS)

    def plot(axes: Axes) -> None:
        axes.pcolormesh(values, cmap=_BLUES, vmin=0, vmax=1, edgecolors=_INK, linewidth=0.15)
        axes.invert_yaxis()
        axes.set(xlabel=columns, ylabel=rows)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        ticks = np.arange(size) + 0.5
        names = classes if size <= _MOST_NAMED else [""] * size
        turn = 45 if max(map(len, names)) > 2 else 0
        axes.set_xticks(
            ticks, names, rotation=turn, ha="right" if turn else "center", rotation_mode="anchor"
        )
        axes.set_yticks(ticks, names)
        if size <= _WITH_NUMBERS:
            for row, column in zip(*counts.nonzero(), strict=True):
                text = f"{100 * values[row, column]:.0f}" if shares else f"{counts[row, column]}"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9)

    return draw(plot, side + 0.4, side)


def embedding(samples: Samples, classes: Sequence[str]) -> str:
    """Plot a t-SNE map of the features of the snapshot, with rings at relabeled samples."""
    ids = samples.snapshot["mapped"]
    points = _flatten(samples.snapshot["features"])
    changed = np.isin(ids, list(samples.changes))
    many = mpl.colormaps["turbo"].resampled(len(classes))

    def plot(axes: Axes) -> None:
        for label, name in enumerate(classes):
            found = samples.now[ids] == label
            of_class = f"C{label}" if len(classes) <= len(_COLORS) else many(label)
            axes.plot(*points[found].T, ".", color=of_class, markersize=5, label=name)
        if changed.any():
            axes.plot(
                *points[changed].T, "o", mfc="none", mec=_INK, mew=0.8, ms=6, label="relabeled"
            )
        axes.set_axis_off()
        if len(classes) <= _WITH_NUMBERS:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)

    return draw(plot, 4.8, 3.9)


def _flatten(features: np.ndarray) -> np.ndarray:
    """Embed features `(m, F)` in two dimensions."""
    from sklearn.manifold import TSNE  # slow to import

    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    perplexity = min(30, (len(features) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0)
    return found.fit_transform(scaled)


def uncertainties(samples: Samples) -> str:
    """Plot histograms of the uncertainty of right and wrong, or kept and changed, labels."""
    if samples.true is None:
        changed = samples.now != samples.given
        groups = {"label kept": ~changed, "label changed": changed}
    else:
        right = samples.given == samples.true
        groups = {"given label right": right, "given label wrong": ~right}

    def plot(axes: Axes) -> None:
        for name, chosen in groups.items():
            axes.hist(
                samples.uncertainty[chosen], bins=np.linspace(0, 1, 21).tolist(), log=True,
                histtype="step", linewidth=1.6, label=f"{name} ({chosen.sum()})",
            )  # fmt: skip
        axes.set(xlabel="uncertainty of the label", ylabel="samples")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize=8)

    return draw(plot)
