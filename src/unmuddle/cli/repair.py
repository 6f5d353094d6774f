"""`unmuddle repair`."""

from pathlib import Path

from unmuddle.cli.parser import Parser, make_parser, path_option
from unmuddle.recipe.repair import Way, repair


def parser() -> Parser:
    """Return the parser of the command."""
    made = make_parser(
        "unmuddle repair",
        "unmuddle repair --data folder:PATH --labels FILE --out FOLDER [--by copy|link|list]",
        "Write a copy of a folder of images with every image in its decided class. The original\n"
        "is not changed.",
        "  unmuddle repair --data folder:PATH --labels labels.csv --out repaired",
    )
    made.add_argument("--data", required=True, help="folder:PATH, as for train")
    made.add_argument("--labels", type=path_option, required=True, help="decisions, as for train")
    made.add_argument("--out", type=path_option, required=True, help="folder to write")
    made.add_argument(
        "--by",
        choices=("copy", "link", "list"),
        default="copy",
        help="copy images, link to them, or only list them in manifest.csv: copy link list [copy]",
    )
    return made


def run(data: str, labels: Path, out: Path, by: Way) -> None:
    """Write the folder."""
    print(repair(data, labels, out, by))
