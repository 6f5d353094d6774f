"""Report of runs as one self-contained HTML page, without scripts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from torch import as_tensor

from unmuddle.recipe.errors import refusing
from unmuddle.recipe.metrics import confusion_matrix
from unmuddle.report import plots
from unmuddle.report.html import png, render
from unmuddle.report.runs import RunFiles, Samples, read_samples
from unmuddle.report.table import comparison


class Plot(NamedTuple):
    """Plot with a title and a caption."""

    title: str
    caption: str
    svg: str


def report_page(runs: Sequence[RunFiles]) -> str:
    """Return the complete HTML page.

    Raises:
        UsageError: a file of a run cannot be read.
    """
    return render(
        "report.html",
        title=" · ".join(run.name for run in runs),
        names=[run.name for run in runs],
        colors=[plots.color(number) for number in range(len(runs))],
        comparison=[(name, cells, _differ(cells)) for name, cells in comparison(runs)],
        curves=_curves(runs),
        sections=[_section(run) for run in runs],
        options=_options(runs),
    )


def _curves(runs: Sequence[RunFiles]) -> list[Plot]:
    accuracy = (
        "Solid: validation, with a ring at the selected epoch. Dashed: training, on augmented "
        "images and the labels trained on."
    )
    right = "Share of labels that agree with the known true labels."
    found = (
        ("Training loss", "Mean of the total loss over the epoch.", ("train_loss",), False),
        ("Accuracy", accuracy, ("val_accuracy", "train_accuracy"), True),
        ("Training labels right", right, ("labels_right",), True),
    )
    drawn = [(title, text, plots.curves(runs, *keys, share=s)) for title, text, keys, s in found]
    return [Plot(title, text, svg) for title, text, svg in drawn if svg]


def _section(run: RunFiles) -> dict[str, Any]:
    classes: list[str] = run.summary["classes"]
    samples = read_samples(run.folder, len(classes))
    with refusing(f"{run.folder.path}: its files do not fit one another"):
        return {
            "name": run.name,
            "summary": run.summary,
            "plots": list(_plots(run, samples, classes)),
            "relabels": list(_relabels(samples, classes)),
            "changed": len(samples.changes),
        }


def _plots(run: RunFiles, samples: Samples, classes: Sequence[str]) -> Iterator[Plot]:
    size = len(classes)
    if "test" in run.summary:
        svg = plots.matrix(np.array(run.summary["test"]["confusion"]), classes, "true", "predicted")
        yield Plot("Test confusion", "Percentage of each true class.", svg)
    if samples.changes:
        flow = confusion_matrix(as_tensor(samples.given), as_tensor(samples.now), size).numpy()
        np.fill_diagonal(flow, 0)
        svg = plots.matrix(flow, classes, "given label", "new label", shares=False)
        text = f"{len(samples.changes)} of {len(samples.now)} training labels, counted."
        yield Plot("Relabel flow", text, svg)
    if samples.true is not None:
        after = [("after relabeling", samples.now)] if samples.changes else []
        for title, labels in [("as given", samples.given), *after]:
            right = (labels == samples.true).mean()
            counts = confusion_matrix(as_tensor(samples.true), as_tensor(labels), size).numpy()
            yield Plot(
                f"Training labels {title}",
                f"Percentage of each true class; {right:.1%} are right.",
                plots.matrix(counts, classes, "true", "label"),
            )
    if samples.uncertainty.any():
        text = "At the end of the run, or at the last change of the label. Logarithmic scale."
        yield Plot("Uncertainty", text, plots.uncertainties(samples))
    mapped = len(samples.snapshot.get("mapped", ()))
    if mapped >= plots.FEWEST_MAPPED:
        text = (
            f"t-SNE of the features of {mapped} random samples, "
            "coloured by the label at the end of the run."
        )
        yield Plot("Map of the training samples", text, plots.embedding(samples, classes))


def _relabels(samples: Samples, classes: Sequence[str]) -> Iterator[dict[str, str | None]]:
    if not samples.snapshot:
        return
    ids: list[int] = samples.snapshot["pictured"].tolist()
    for sample, pixels in zip(ids, samples.snapshot["thumbnails"], strict=True):
        change = samples.changes[sample]
        why = f"epoch {change.epoch}, by {change.rule}"
        if not np.isnan(change.margin):
            why += f": margin {change.margin:.2f}, above {change.threshold:.2f}"
        if not np.isnan(change.uncertainty):
            why += f"; uncertainty {change.uncertainty:.2f}"
        yield {
            "image": png(pixels.transpose(1, 2, 0)),
            "source": samples.sources[sample] or f"sample {sample}",
            "given": classes[int(samples.given[sample])],
            "new": classes[change.new],
            "true": None if samples.true is None else classes[int(samples.true[sample])],
            "why": why,
        }


def _options(runs: Sequence[RunFiles]) -> list[tuple[str, list[str], bool]]:
    """Return the name of each option, its value in each run, and whether the runs differ."""
    configs = [asdict(run.folder.config()) for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    rows = [(name, [_written(config.get(name)) for config in configs]) for name in names]
    return [(name, cells, _differ(cells) and name != "out") for name, cells in rows]


def _differ(cells: Sequence[str]) -> bool:
    return len(set(cells)) > 1


def _written(value: Any) -> str:
    """Format a value as on the command line."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
