"""Tables of the page "Label noise"."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.studies.evidence import Row, spread, table
from benchmarks.studies.label_figures import ANSWERS

TITLES = {"human": "people", "symmetric": "symmetric", "pair": "pair", "none": "none"}
NOISY = [noise for noise in TITLES if noise != "none"]


def select(rows: list[Row], noise: str, kind: str) -> list[Row]:
    """Return the rows of a noise and a kind, by seed."""
    return [row for row in rows if (row["noise"], row["kind"]) == (noise, kind)]


def ranking_table(rows: list[Row]) -> str:
    """Average precision in percent, by approach and noise."""

    def of_cleanlab(found: list[Row]) -> str:
        name = _best([row["rankings"] for row in found], float)
        return f"{spread(row['rankings'][name] for row in found)} ({name})" if name else "-"

    lines: list[list[str]] = []
    for noise in NOISY:
        ours = select(rows, noise, "uerm")
        column = {
            "chance": spread(1 - row["before"] for row in ours),
            "cleanlab": of_cleanlab(select(rows, noise, "cleanlab")),
            "cleanlab on UERM's predictions": of_cleanlab(
                [row["same_predictions"] for row in ours]
            ),
            "cleanlab, 5 folds": of_cleanlab(select(rows, noise, "folds")),
            "UERM": spread(row["ranking"] for row in ours),
        }
        for number in ANSWERS:
            verified = [row[f"verified_{number}"] for row in ours]
            column[f"after {number} answers"] = spread(v["ranking"] for v in verified)
        top = [row["verified_top"] for row in ours]
        column[f"after {ANSWERS[-1]} answers from the top"] = spread(v["ranking"] for v in top)
        lines = _beside(lines, column)
    return table(["", *(TITLES[noise] for noise in NOISY)], lines)


def repair_table(rows: list[Row]) -> str:
    """Percentage of right labels and precision of the changes, by approach and noise."""

    def of_cleanlab(found: list[Row]) -> str:
        name = _best([row["repairs"] for row in found], lambda repair: repair["after"])
        return f"{_repaired(row['repairs'][name] for row in found)} ({name})" if name else "-"

    lines: list[list[str]] = []
    for noise in TITLES:
        ours = select(rows, noise, "uerm")
        column = {
            "before": spread(row["before"] for row in ours),
            "cleanlab": of_cleanlab(select(rows, noise, "cleanlab")),
            "cleanlab on UERM's predictions": of_cleanlab(
                [row["same_predictions"] for row in ours]
            ),
            "cleanlab, 5 folds": of_cleanlab(select(rows, noise, "folds")),
            "UERM": _repaired(row["repair"] for row in ours),
            "UERM, eager": _repaired(row["eager"] for row in ours),
        }
        name, answered = f"verified_{ANSWERS[-1]}", f"after {ANSWERS[-1]} answers"
        verified = [row[name] for row in ours if noise != "none"]
        column[answered] = _repaired(v["repair"] for v in verified)
        for setting in ("eager", "strict"):
            column[f"{answered}, {setting}"] = _repaired(v[setting] for v in verified)
        lines = _beside(lines, column)
    return table(["", *TITLES.values()], lines)


def tries_table(rows: list[Row]) -> str:
    """Average precision, right labels and precision of every approach."""
    lines: list[list[str]] = []
    columns: list[str] = []
    for noise, title in TITLES.items():
        ours = [row["tries"] for row in select(rows, noise, "uerm")]
        names = list(ours[0]) if ours else []
        if noise != "none":
            columns.append(f"{title}: ranking")
            lines = _beside(lines, {n: spread(row[n]["ranking"] for row in ours) for n in names})
        columns.append(f"{title}: repair")
        lines = _beside(lines, {n: _repaired(row[n]["repair"] for row in ours) for n in names})
    return table(["", *columns], lines)


def model_table(rows: list[Row]) -> str:
    """Estimated and true noise rates, and shares of contradicted labels, in percent."""
    lines: list[list[str]] = []
    for noise in TITLES:
        ours = select(rows, noise, "uerm")
        models = [row["model"] for row in ours]
        column = {
            "wrong labels": spread(1 - row["before"] for row in ours),
            "ε, confident contradictions": spread(m["rate"] for m in models),
            "ε, maximum likelihood": spread(m["most_likely_rate"] for m in models),
            "contradicted labels": spread(m["contradicted"] for m in models),
            "contradicted, of the wrong ones": spread(m["wrong_contradicted"] for m in models),
        }
        lines = _beside(lines, column)
    return table(["", *TITLES.values()], lines)


def class_table(rows: list[Row]) -> str:
    """Percentage of wrong labels, by given class and noise."""
    found = {
        noise: [row["model"]["wrong_by_class"] for row in select(rows, noise, "uerm")]
        for noise in NOISY
    }
    names = max((list(shares[0]) for shares in found.values() if shares), key=len, default=[])
    lines = [
        [name, *(spread(s.get(name) for s in shares) for shares in found.values())]
        for name in names
    ]
    return table(["given class", *(TITLES[noise] for noise in NOISY)], lines)


def cost_table(rows: list[Row]) -> str:
    """Test accuracy in percent, and minutes of training."""
    lines: list[list[str]] = []
    for noise in NOISY:
        with_uerm, without, folds = (
            select(rows, noise, kind) for kind in ("uerm", "cleanlab", "folds")
        )
        column = {
            "test accuracy with UERM": spread(row["test"] for row in with_uerm),
            "test accuracy without": spread(row["test"] for row in without),
            "minutes with UERM": _minutes(with_uerm),
            "minutes without": _minutes(without),
            "minutes of 5 folds": _minutes(folds),
        }
        lines = _beside(lines, column)
    return table(["", *(TITLES[noise] for noise in NOISY)], lines)


def analysis_table(rows: list[Row]) -> str:
    """Seconds and megabytes of judging labels without training."""
    found = [row for row in rows if row["kind"] == "analysis"]
    lines = [
        [name, f"{row[name]['seconds']:.2f}", f"{row[name]['megabytes']:.0f}"]
        for row in found
        for name in ("unmuddle", "cleanlab")
    ]
    return table(["", "seconds", "megabytes"], lines)


SECTIONS = {
    "ranking": ranking_table,
    "repair": repair_table,
    "tries": tries_table,
    "model": model_table,
    "classes": class_table,
    "cost": cost_table,
    "analysis": analysis_table,
}


def _best(found: list[dict[str, Any]], value: Callable[[Any], float]) -> str | None:
    """Name of cleanlab's score or filter with the best mean; the choice uses the truth."""
    if not found:
        return None
    return max(found[0], key=lambda name: sum(value(row[name]) for row in found))


def _repaired(repairs: Iterable[Row]) -> str:
    repairs = list(repairs)
    if not repairs:
        return "-"
    precision = spread(r["precision"] for r in repairs)
    return f"{spread(r['after'] for r in repairs)} @ {precision}"


def _minutes(rows: list[Row]) -> str:
    return f"{sum(row['seconds'] for row in rows) / len(rows) / 60:.0f}" if rows else "-"


def _beside(lines: list[list[str]], column: dict[str, str]) -> list[list[str]]:
    """Append a column to the lines of a table."""
    lines = lines or [[name] for name in column]
    return [[*line, column.get(line[0], "-")] for line in lines]
