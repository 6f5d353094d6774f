"""Runs as one HTML page that needs nothing else: no other file, no script, no network."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from unmuddle.recipe.errors import UsageError
from unmuddle.report import plots
from unmuddle.report.html import png, render
from unmuddle.report.runs import RunFiles, Samples, read_samples
from unmuddle.report.table import comparison


class Plot(NamedTuple):
    """A picture with a heading and what it says."""

    title: str
    caption: str
    svg: str


class Relabel(NamedTuple):
    """A relabeled sample; `true` is the label known to be better than the given one, if any."""

    image: str
    source: str
    given: str
    new: str
    true: str | None
    why: str


def report_page(runs: Sequence[RunFiles]) -> str:
    """The page, whole.

    Raises:
        UsageError: a file of a run cannot be read.
    """
    return render(
        "report.html",
        title=" · ".join(run.name for run in runs),
        names=[run.name for run in runs],
        colors=[plots.color(number) for number in range(len(runs))],
        comparison=[(name, cells, _differ(cells)) for name, cells in comparison(runs)],
        curves=list(_curves(runs)),
        sections=[_section(run) for run in runs],
        options=_options(runs),
    )


def _curves(runs: Sequence[RunFiles]) -> Iterator[Plot]:
    for title, caption, svg in (
        (
            "Training loss",
            "Mean over the epoch, of all parts together.",
            plots.curves(runs, "train_loss"),
        ),
        (
            "Accuracy",
            "Solid: validation, a ring at the selected epoch. Dashed: training, on augmented "
            "images against the labels trained on.",
            plots.curves(runs, "val_accuracy", "train_accuracy", share=True),
        ),
        (
            "Training labels right",
            "Share that agrees with the labels known to be better.",
            plots.curves(runs, "labels_right", share=True),
        ),
    ):
        if svg is not None:
            yield Plot(title, caption, svg)


def _section(run: RunFiles) -> dict[str, Any]:
    samples = read_samples(run.folder)
    classes: list[str] = run.summary["classes"]
    try:
        return {
            "name": run.name,
            "summary": run.summary,
            "plots": list(_plots(run, samples, classes)),
            "relabels": list(_relabels(samples, classes)),
            "changed": len(samples.changes),
        }
    except (LookupError, ValueError, TypeError) as error:
        raise UsageError(
            f"{run.folder.path}: its files do not fit one another: {error!r}"
        ) from error


def _plots(run: RunFiles, samples: Samples, classes: Sequence[str]) -> Iterator[Plot]:
    size = len(classes)
    if "test" in run.summary:
        yield Plot(
            "Test confusion",
            "Percent of each true class.",
            plots.matrix(np.array(run.summary["test"]["confusion"]), classes, "true", "predicted"),
        )
    if samples.changes:
        flow = plots.count_pairs(samples.given, samples.now, size)
        np.fill_diagonal(flow, 0)
        yield Plot(
            "Relabel flow",
            f"{len(samples.changes)} of {len(samples.now)} training labels, counted.",
            plots.matrix(flow, classes, "given label", "new label", shares=False),
        )
    if samples.true is not None:
        for title, labels in (("as given", samples.given), ("after relabeling", samples.now)):
            right = (labels == samples.true).mean()
            yield Plot(
                f"Training labels {title}",
                f"Percent of each true class; {right:.1%} are right.",
                plots.matrix(
                    plots.count_pairs(samples.true, labels, size), classes, "true", "label"
                ),
            )
            if not samples.changes:
                break
    if samples.uncertainty.any():
        yield Plot(
            "Uncertainty",
            "Of the label when the run ended, or when it was changed; logarithmic scale.",
            plots.uncertainties(samples),
        )
    if len(samples.snapshot.get("mapped", ())) >= plots.FEWEST_MAPPED:
        yield Plot(
            "Map of the training samples",
            f"Features of {len(samples.snapshot['mapped'])}, drawn by chance, by t-SNE, "
            "in the colour of the label when the run ended.",
            plots.embedding(samples, classes),
        )


def _relabels(samples: Samples, classes: Sequence[str]) -> Iterator[Relabel]:
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
        yield Relabel(
            image=png(pixels.transpose(1, 2, 0)),
            source=samples.sources[sample] or f"sample {sample}",
            given=classes[int(samples.given[sample])],
            new=classes[change.new],
            true=None if samples.true is None else classes[int(samples.true[sample])],
            why=why,
        )


def _options(runs: Sequence[RunFiles]) -> list[tuple[str, list[str], bool]]:
    """Name, value in each run, and whether the runs differ in it."""
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
