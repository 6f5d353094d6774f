"""`unmuddle report`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unmuddle.cli.outputs import check_file, check_report
from unmuddle.cli.parser import Parser, make_parser
from unmuddle.recipe.atomic import write_text
from unmuddle.report import comparison_table, read_runs, report_page


def parser() -> Parser:
    """Return the parser of the command."""
    return make_parser(
        run,
        "unmuddle report RUN [RUN ...] [--out FILE]",
        "  unmuddle report runs/one\n  unmuddle report runs/one runs/two --out comparison.html",
    )


def run(runs: Sequence[Path], *, out: Path | None = None) -> None:
    """Print runs side by side, and write an HTML page with curves and relabeled images.

    The page also shows confusion matrices and options. It is one file, and loads nothing.

    Args:
        runs: run folders
        out: file to write; default: RUN/report.html, or ./report.html for several runs
    """
    write(runs, out)


def write(runs: Sequence[Path], out: Path | None = None, *, quiet: bool = False) -> None:
    """Write the page; unless `quiet`, print the table and where the page is."""
    if out is not None:
        check_file("--out", out)
    out = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    check_report("--out", out)
    read = read_runs(runs)
    write_text(out, report_page(read))
    console = Console(quiet=quiet, emoji=False)
    console.print(comparison_table(read))
    console.print(f"report: {out}", markup=False, highlight=False, soft_wrap=True)
