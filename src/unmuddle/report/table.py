"""Several runs side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from unmuddle.report.runs import RunFiles

UNKNOWN = "-"

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
    note = "test figures: the epoch that was best on the validation split" if tested else None
    table = Table(caption=note)
    table.add_column("run")
    for run in runs:
        table.add_column(escape(run.path.name), justify="right", overflow="fold")
    for heading, cell in _ROWS:
        table.add_row(heading, *(escape(cell(run.summary)) for run in runs))
    return table


def _percent(summary: dict[str, Any], group: str, key: str) -> str:
    value = summary.get(group, {}).get(key)
    return UNKNOWN if value is None else f"{value:.1%}"
