"""`unmuddle report`."""

from pathlib import Path

from rich.console import Console

from unmuddle.cli.outputs import check_file, check_report
from unmuddle.cli.parser import Parser, make_parser, path_option
from unmuddle.recipe.atomic import write_text
from unmuddle.report import comparison_table, read_runs, report_page


def parser() -> Parser:
    """Return the parser of the command."""
    made = make_parser(
        "unmuddle report",
        "unmuddle report RUN [RUN ...] [--out FILE]",
        "Print runs side by side, and write an HTML page with curves, confusion matrices,\n"
        "relabeled images and options. The page is one file, and loads nothing.",
        "  unmuddle report runs/one\n  unmuddle report runs/one runs/two --out comparison.html",
    )
    made.add_argument("runs", nargs="+", type=path_option, metavar="RUN", help="run folders")
    made.add_argument(
        "--out",
        type=path_option,
        help="file to write; default: RUN/report.html, or ./report.html for several runs",
    )
    return made


def run(runs: list[Path], out: Path | None = None, *, quiet: bool = False) -> None:
    """Print the table and write the page."""
    if out is not None:
        check_file("--out", out)
    out = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    check_report("--out", out)
    read = read_runs(runs)
    write_text(out, report_page(read))
    console = Console(quiet=quiet, emoji=False)
    console.print(comparison_table(read))
    console.print(f"report: {out}", markup=False, highlight=False, soft_wrap=True)
