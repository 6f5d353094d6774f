"""CSV tables. Columns are checked when a file is read, and files are written atomically."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unmuddle.recipe.atomic import write_whole


def read_table(
    path: Path, columns: Sequence[str], **dialect: Any
) -> Iterator[tuple[int, dict[str | None, Any]]]:
    """Yield the line number of each row, and the row as a dict by column.

    A row whose length differs from that of the header contains `None`, as in `csv.DictReader`.

    Args:
        path: CSV file with a header.
        columns: required columns.
        **dialect: options of `csv.reader`.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Spreadsheets write the separator of their locale.
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, **dialect)
            found = reader.fieldnames or ()
            if missing := [name for name in columns if name not in found]:
                raise ValueError(
                    f"lacks the columns {', '.join(missing)}; "
                    f"its first row holds {', '.join(found) or 'nothing'}"
                )
            for row in reader:
                yield reader.line_num, row
    except UnicodeError as error:
        raise ValueError(f"not UTF-8, save it as UTF-8: {error}") from error
    except (OSError, csv.Error) as error:
        raise ValueError(f"not readable: {error}") from error


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a header and rows to a CSV file."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

    write_whole(path, write)
