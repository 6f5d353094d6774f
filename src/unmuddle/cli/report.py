"""`unmuddle report`.

Examples:
  unmuddle report runs/one
  unmuddle report runs/one runs/two --out comparison.html
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unmuddle.cli.outputs import check_report
from unmuddle.cli.parser import OutputFile
from unmuddle.recipe.atomic import write_text
from unmuddle.report.report_page import report_page
from unmuddle.report.runs import read_runs
from unmuddle.report.table import comparison_table


def run(runs: Sequence[Path], *, out: OutputFile | None = None) -> None:
    """Print runs side by side, and write an HTML page with curves and relabeled images.

    The page also shows confusion matrices and options. It is one file, and loads nothing.

    Args:
        runs: run folders
        out: file to write; default: RUN/report.html, or ./report.html for several runs
    """
    write(runs, out)


def write(runs: Sequence[Path], out: OutputFile | None = None, *, quiet: bool = False) -> None:
    """Write the page; unless `quiet`, print the table and where the page is."""
    path = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    check_report("--out", path)
    read = read_runs(runs)
    write_text(path, report_page(read))
    console = Console(quiet=quiet, emoji=False)
    console.print(comparison_table(read))
    console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
