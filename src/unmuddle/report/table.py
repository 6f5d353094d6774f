"""Several runs side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from unmuddle.report.runs import RunFiles

UNKNOWN = "–"  # noqa: RUF001  an en dash reads as an empty cell

_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("test accuracy", lambda s: _percent(s, "test", "accuracy")),
    ("mean class accuracy", lambda s: _percent(s, "test", "mean_class_accuracy")),
    ("labels right before", lambda s: _percent(s, "relabeling", "right_before")),
    ("labels right after", lambda s: _percent(s, "relabeling", "right_after")),
    ("relabel precision", lambda s: _percent(s, "relabeling", "precision")),
    ("relabel recall", lambda s: _percent(s, "relabeling", "recall")),
    ("seconds", lambda s: f"{s['seconds']:.0f}"),
)


def comparison_table(runs: Sequence[RunFiles]) -> Table:
    """One row a run; a dash where a run has no such figure."""
    table = Table(caption="test accuracy is of the epoch that was best on the validation split")
    table.add_column("run")
    for heading, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    for run in runs:
        name = f"{run.summary['data']} {run.summary['noise']}\n{run.summary['parts']}"
        if run.summary["status"] != "finished":
            name += f"\n({run.summary['status']})"
        table.add_row(name, *(cell(run.summary) for _, cell in _COLUMNS))
    return table


def _percent(summary: dict[str, Any], group: str, key: str) -> str:
    value = summary.get(group, {}).get(key)
    return UNKNOWN if value is None or value != value else f"{value:.1%}"
