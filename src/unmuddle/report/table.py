"""Several runs side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from unmuddle.report.runs import RunFiles

UNKNOWN = "-"
NOTE = "test figures: the epoch that was best on the validation split"

_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("data", lambda s: s["data"]),
    ("label noise", lambda s: s["noise"]),
    ("backbone", lambda s: s["backbone"]),
    ("parts", lambda s: s["parts"]),
    ("status", lambda s: s["status"]),
    ("test accuracy", lambda s: _percent(s, "test", "accuracy")),
    ("test mean class accuracy", lambda s: _percent(s, "test", "mean_class_accuracy")),
    ("labels right before", lambda s: _percent(s, "relabeling", "right_before")),
    ("labels right after", lambda s: _percent(s, "relabeling", "right_after")),
    ("relabel precision", lambda s: _percent(s, "relabeling", "precision")),
    ("relabel recall", lambda s: _percent(s, "relabeling", "recall")),
    ("seconds", lambda s: f"{s['seconds']:.0f}"),
)


def comparison_table(runs: Sequence[RunFiles]) -> Table:
    """One column a run, one row a figure; a dash where a run has no such figure."""
    tested = any("test" in run.summary for run in runs)
    table = Table(caption=NOTE if tested else None)
    table.add_column("run")
    for run in runs:
        table.add_column(escape(run.name), justify="right", overflow="fold")
    for heading, cells in comparison(runs):
        table.add_row(heading, *(escape(cell) for cell in cells))
    return table


def comparison(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Heading of each row, and its cells."""
    return [(heading, [cell(run.summary) for run in runs]) for heading, cell in _ROWS]


def _percent(summary: dict[str, Any], group: str, key: str) -> str:
    return _share(summary.get(group, {}).get(key))


def metrics_table(figures: dict[str, Any], title: str) -> Table:
    """What `unmuddle evaluate` found: class by class, and below it the whole split."""
    whole = [f"{figures['samples']} samples, 95 % intervals by bootstrap:"]
    for name in ("accuracy", "mean_class_accuracy", "calibration_error"):
        value, low, high = (_share(figures[name][key]) for key in ("value", "low", "high"))
        whole.append(f"{name.replace('_', ' ')} {value} ({low} to {high})")
    table = Table(title=escape(title), caption="\n".join(whole), caption_justify="left")
    table.add_column("class")
    for heading in ("samples", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for name, found in figures["classes"].items():
        shares = (_share(found[key]) for key in ("precision", "recall", "f1"))
        table.add_row(escape(name), str(found["samples"]), *shares)
    return table


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"
