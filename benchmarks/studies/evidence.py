"""Statistics, tables and plots of the rows of parts.jsonl, for the page "From scratch"."""

import itertools
import math
import statistics
from base64 import b64decode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, t

from benchmarks.pages import PAGES, write_sections

Row = dict[str, Any]
NOTHING, EVERYTHING = "none", "supcon,published_arm,uerm"
PARTS = (
    NOTHING,
    "supcon",
    "published_arm",
    "uerm",
    "supcon,published_arm",
    "supcon,uerm",
    "published_arm,uerm",
    EVERYTHING,
)
ABLATION, LEAK = "evidence-ablation.png", "evidence-leak.png"
NOISES = ("none", "symmetric:0.1", "symmetric:0.2", "symmetric:0.3", "human")


class Difference(NamedTuple):
    """Accuracy of one kind of run above another's, run by run.

    Attributes:
        seeds: S.
        mean: of the differences.
        radius: of the 95 % interval, over test samples and seeds.
        p: of a paired t test over the seeds; NaN for one seed.
        gained: test samples that only the better kind classifies right, over those that only the
            other does.
    """

    seeds: int
    mean: float
    radius: float
    p: float
    gained: float


def hits(row: Row) -> np.ndarray:
    """`(n,)` 1 where a test sample or a further one was classified right, else 0."""
    further = np.frombuffer(b64decode(row.get("further_right", "")), np.uint8)
    tested = np.frombuffer(row["right"].encode(), np.uint8) - ord("0")
    return np.concatenate([tested, np.unpackbits(further, count=row.get("further", 0))])


def difference(pairs: list[tuple[Row, Row]]) -> Difference:
    """Of pairs of rows of one data set, the second of each above the first.

    Pairs of one seed are averaged first: they share its noise and much of its weights. The interval
    adds in squares that of a mean over S seeds (Student's t) and that over the test samples, which
    all seeds share. A bootstrap of three seeds would not do: all three are the same one time in 9.
    """
    by_seed: dict[int, list[np.ndarray]] = {}
    for base, better in pairs:
        found = hits(better).astype(float) - hits(base)
        by_seed.setdefault(base["seed"], []).append(found)
    of_both = np.array([np.mean(found, axis=0) for found in by_seed.values()])
    seeds, samples = of_both.shape
    of_seed, of_sample = of_both.mean(1), of_both.mean(0)
    radius, p = float(norm.ppf(0.975) * of_sample.std(ddof=1) / math.sqrt(samples)), math.nan
    if seeds > 1:
        deviation = of_seed.std(ddof=1) / math.sqrt(seeds)
        radius = math.hypot(radius, float(t.ppf(0.975, seeds - 1) * deviation))
        p = float(2 * t.sf(abs(of_seed.mean()) / max(deviation, 1e-9), seeds - 1))
    everything = np.concatenate([hits(better).astype(int) - hits(base) for base, better in pairs])
    won, lost = int((everything > 0).sum()), int((everything < 0).sum())
    return Difference(seeds, float(of_seed.mean()), radius, p, won / lost if lost else math.inf)


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows with these values, by seed."""
    found = [r for r in rows if all(r[name] == value for name, value in wanted.items())]
    return sorted(found, key=lambda row: row["seed"])


def paired(base: list[Row], better: list[Row]) -> list[tuple[Row, Row]]:
    """Rows of the same seeds."""
    of_seed = {row["seed"]: row for row in better}
    return [(row, of_seed[row["seed"]]) for row in base if row["seed"] in of_seed]


def spread(values: Iterable[float | None]) -> str:
    """Mean and standard deviation in percent; a dash where there is none."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{deviation}"


COMPARED = ("points (95 %)", "p", "gained : lost")


def described(pairs: list[tuple[Row, Row]]) -> list[str]:
    """Cells of a table: the columns of COMPARED."""
    if not pairs:
        return ["-"] * len(COMPARED)
    d = difference(pairs)
    p = "-" if math.isnan(d.p) else f"{d.p:.3f}"
    return [f"{100 * d.mean:+.1f} ± {100 * d.radius:.1f}", p, f"{d.gained:.2f}"]


def table(columns: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """In Markdown."""
    columns, lines = list(columns), list(lines)
    if not lines:
        return "Not run yet."
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, line))} |" for line in lines)])


def tries(rows: list[Row]) -> str:
    """Runs that settings were chosen by, on validation."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in select(rows, split="val"):
        key = tuple(row[name] for name in ("data", "noise", "parts", "variant"))
        found.setdefault(key, []).append(row)
    lines = []
    for (data, noise, parts, variant), same in sorted(found.items()):
        figures = [spread(r[name] for r in same) for name in ("accuracy", "last", "after")]
        options = [f"data={data}", f"noise={noise}", f"parts={parts}", *variant.split()]
        commits = ", ".join(sorted({r["commit"] for r in same}))
        lines.append([" ".join(f"`{o}`" for o in options), len(same), *figures, commits])
    columns = ["options", "seeds", "validation accuracy", "of the last epoch"]
    return table([*columns, "training labels right", "commit"], lines)


def ablation(rows: list[Row], data: str, noise: str) -> str:
    """Every choice of parts, against none."""
    rows = select(rows, data=data, noise=noise, split="test", variant="")
    base = select(rows, parts=NOTHING)
    lines = []
    for parts in PARTS:
        found = select(rows, parts=parts)
        if found:
            against = [""] * len(COMPARED) if parts == NOTHING else described(paired(base, found))
            figures = [spread(r[name] for r in found) for name in ("accuracy", "last", "after")]
            minutes = f"{statistics.mean(r['seconds'] for r in found) / 60:.1f}"
            lines.append([parts.replace(",", ", "), len(found), *figures, *against, minutes])
    columns = ["parts", "seeds", "test accuracy", "of the last epoch", "training labels right"]
    return table([*columns, f"above none, {COMPARED[0]}", *COMPARED[1:], "minutes"], lines)


def effects(rows: list[Row], data: str, noise: str) -> str:
    """Each part: runs with it against the same runs without, whatever the others are."""
    rows = select(rows, data=data, noise=noise, split="test", variant="")
    complete = set.intersection(*({r["seed"] for r in select(rows, parts=p)} for p in PARTS))
    rows = [row for row in rows if row["seed"] in complete]
    lines = []
    for part in ("supcon", "published_arm", "uerm"):
        pairs = []
        for parts in PARTS:
            rest = ",".join(p for p in parts.split(",") if p != part) or NOTHING
            if part in parts:
                pairs += paired(select(rows, parts=rest), select(rows, parts=parts))
        if pairs:
            lines.append([part, len(complete), *described(pairs)])
    return table(["part", "seeds", f"effect, {COMPARED[0]}", *COMPARED[1:]], lines)


def relabeling(rows: list[Row]) -> str:
    """Policies and kinds of noise: labels, and accuracy against the same without relabeling."""
    rows = select(rows, data="ferplus", split="test")
    lines = []
    for noise in NOISES:
        base = select(rows, noise=noise, parts=NOTHING, variant="")
        for variant in ("", "ema_margin", "scn", "scn_all"):
            found = select(rows, noise=noise, parts="uerm", variant=variant)
            if found:
                names = ("before", "after", "precision", "recall", "accuracy", "last")
                figures = [spread(r[name] for r in found) for name in names]
                against = described(paired(base, found))
                lines.append([noise, variant or "bayes", len(found), *figures, *against])
    columns = ["noise", "policy", "seeds", "labels right before", "after", "precision", "recall"]
    columns += ["test accuracy", "of the last epoch", f"above none, {COMPARED[0]}", *COMPARED[1:]]
    return table(columns, lines)


def plot(rows: list[Row]) -> str:
    """The picture of the ablation, once there is something to see."""
    found = select(rows, data="ferplus", split="test", variant="")
    return f"![Test accuracy of every run, by its parts]({ABLATION})" if found else "Not run yet."


def votes(rows: list[Row]) -> str:
    """Training on the annotators' votes against training on their majority."""
    lines = []
    for parts, variant in itertools.product((NOTHING, "supcon"), ("", "votes")):
        chosen = select(rows, data="ferplus", noise="none", parts=parts)
        found = select(chosen, variant=variant)
        if found:
            base = select(chosen, variant="")
            against = [""] * len(COMPARED) if not variant else described(paired(base, found))
            names = ("accuracy", "calibration", "log_loss", "vote_log_loss")
            figures = [spread(r[name] for r in found) for name in names]
            lines.append([parts, variant or "majority", len(found), *figures, *against])
    columns = ["parts", "trained on", "seeds", "test accuracy", "calibration error"]
    columns += ["log loss x 100", "log loss of the votes x 100"]
    return table([*columns, f"above majority, {COMPARED[0]}", *COMPARED[1:]], lines)


def leak(rows: list[Row]) -> str:
    """Test accuracy of ARM by its affinity in eval, order and batch."""
    measured = _leaks(rows)
    batches = sorted({batch for _, _, batch in measured})
    lines = [
        [affinity, order, *(spread(measured[affinity, order, batch]) for batch in batches)]
        for affinity, order in dict.fromkeys(key[:2] for key in measured)
    ]
    found = table(["affinity in eval", "test samples", *(f"batch {b}" for b in batches)], lines)
    return f"{found}\n\n![Test accuracy over batch size]({LEAK})" if measured else found


def _leaks(rows: list[Row]) -> dict[tuple[str, str, int], list[float]]:
    measured: dict[tuple[str, str, int], list[float]] = {}
    for row in select(rows, data="ferplus", noise="none", parts="published_arm", variant=""):
        for found in row["leak"]:
            key = (found["affinity"], found["order"], found["batch"])
            measured.setdefault(key, []).append(found["accuracy"])
    return measured


def cost(rows: list[Row]) -> str:
    """How long it took."""
    seconds: dict[str, list[int]] = {}
    for row in rows:
        seconds.setdefault(row["device"], []).append(row["seconds"])
    lines = [
        [device, len(found), f"{sum(found) / 3600:.1f}", f"{statistics.median(found) / 60:.1f}"]
        for device, found in sorted(seconds.items())
    ]
    return table(["device", "runs", "hours, one run after another", "minutes a run"], lines)


SECTIONS: dict[str, Callable[[list[Row]], str]] = {
    "tries": tries,
    "ablation-noisy": lambda rows: ablation(rows, "ferplus", "symmetric:0.2"),
    "effects-noisy": lambda rows: effects(rows, "ferplus", "symmetric:0.2"),
    "ablation-plot": plot,
    "ablation-clean": lambda rows: ablation(rows, "ferplus", "none"),
    "effects-clean": lambda rows: effects(rows, "ferplus", "none"),
    "ablation-digits": lambda rows: ablation(rows, "digits", "symmetric:0.2"),
    "effects-digits": lambda rows: effects(rows, "digits", "symmetric:0.2"),
    "ablation-synthetic": lambda rows: ablation(rows, "synthetic", "symmetric:0.2"),
    "effects-synthetic": lambda rows: effects(rows, "synthetic", "symmetric:0.2"),
    "relabeling": relabeling,
    "votes": votes,
    "leak": leak,
    "cost": cost,
}


def render(rows: list[Row]) -> None:
    """Write every table and plot of the page."""
    write_sections("scratch.md", SECTIONS, rows)
    if select(rows, data="ferplus", split="test", variant=""):
        draw_ablation(rows, PAGES / ABLATION)
    if _leaks(rows):
        draw_leak(rows, PAGES / LEAK)


def draw_ablation(rows: list[Row], path: Path) -> None:
    """Test accuracy on FERPlus: a dot for every run, a bar at their mean."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    titles = {"symmetric:0.2": "20 % of the labels wrong", "none": "labels as given"}
    for axes, (noise, title) in zip(panels, titles.items(), strict=True):
        for place, parts in enumerate(PARTS):
            found = select(rows, data="ferplus", noise=noise, parts=parts, split="test", variant="")
            values = [100 * row["accuracy"] for row in found]
            axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.5)
            if values:
                axes.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], "C1", lw=3)
        axes.set(title=title, xlabel="test accuracy, %")
        axes.grid(alpha=0.3)
    panels[0].set(yticks=range(len(PARTS)), yticklabels=[p.replace(",", ", ") for p in PARTS])
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_leak(rows: list[Row], path: Path) -> None:
    """Test accuracy of ARM over the batch size."""
    import matplotlib.pyplot as plt

    measured = _leaks(rows)
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for affinity, order in dict.fromkeys(key[:2] for key in measured):
        points = {b: measured[a, o, b] for a, o, b in measured if (a, o) == (affinity, order)}
        means = [100 * statistics.mean(values) for values in points.values()]
        style = "o-" if affinity == "batch" else "s--"
        axes.plot(list(points), means, style, label=f"{affinity}, {order}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch size at test time", ylabel="test accuracy, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
