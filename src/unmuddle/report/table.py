"""Tables of the metrics of runs."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from unmuddle.report.runs import RunFiles

UNKNOWN = "-"

_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("data", lambda s: s["data"]),
    ("label noise", lambda s: s["noise"]),
    ("decisions", lambda s: s.get("labels") or "none"),
    ("backbone", lambda s: s["backbone"]),
    ("parts", lambda s: s["parts"]),
    ("seed", lambda s: str(s.get("seed", UNKNOWN))),
    ("status", lambda s: s["status"]),
    ("selected epoch", lambda s: str(s["best_epoch"] or UNKNOWN)),
    ("its validation accuracy", lambda s: _share(s.get("val_accuracy"))),
    ("its test accuracy", lambda s: _percent(s, "test", "accuracy")),
    ("its test mean class accuracy", lambda s: _percent(s, "test", "mean_class_accuracy")),
    ("last epoch's test accuracy", lambda s: _percent(s, "test_last_epoch", "accuracy")),
    ("test samples", lambda s: str(_test_samples(s) or UNKNOWN)),
    ("labels right as given", lambda s: _percent(s, "relabeling", "right_before")),
    ("labels right after relabeling", lambda s: _relabeling(s, "right_after")),
    ("relabel precision", lambda s: _relabeling(s, "precision")),
    ("relabel recall", lambda s: _relabeling(s, "recall")),
    ("seconds", lambda s: f"{s['seconds']:.0f}"),
)


def comparison_table(runs: Sequence[RunFiles]) -> Table:
    """Build a table with one column per run and one row per metric. A dash means no value."""
    table = Table()
    table.add_column("run")
    for run in runs:
        table.add_column(escape(run.name), justify="right", overflow="fold")
    for heading, cells in comparison(runs):
        table.add_row(heading, *(escape(cell) for cell in cells))
    return table


def comparison(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Return the heading and the cells of each row."""
    return [(heading, [cell(run.summary) for run in runs]) for heading, cell in _ROWS]


def _test_samples(summary: dict[str, Any]) -> int:
    return sum(sum(row) for row in summary.get("test", {}).get("confusion", ()))


def _relabeling(summary: dict[str, Any], key: str) -> str:
    """Format a relabeling metric, with a dash for a run without relabeling."""
    found = summary.get("relabeling", {})
    is_relabeled = "uerm" in summary["parts"] or found.get("changed")
    return _share(found.get(key)) if is_relabeled else UNKNOWN


def _percent(summary: dict[str, Any], group: str, key: str) -> str:
    return _share(summary.get(group, {}).get(key))


def metrics_table(figures: dict[str, Any], title: str) -> Table:
    """Build the table of `unmuddle evaluate`: one row per class, and the whole split below."""
    whole = [f"{figures['samples']} samples, 95 % bootstrap intervals:"]
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
