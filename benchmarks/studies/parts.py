"""What each part does, over noise, seeds and data: every cell is a run of `unmuddle train`.

    python -m benchmarks.studies.parts --ferplus PATH   cells that are missing, then the page
    python -m benchmarks.studies.parts --only ablation  one of its four questions
    python -m benchmarks.studies.parts --render         docs/pages/scratch.md alone
    python -m benchmarks.studies.parts --quick          a small one on digits; nothing is kept
    python -m benchmarks.studies.parts --ferplus PATH --tries "parts=uerm warmup=0.2"
                                                other options, scored on validation alone

A cell that was stopped is resumed, and one that has a row in parts.jsonl is not run again, so an
interrupted study goes on where it was. Settings are those of parts.yaml, as committed.
"""

import argparse
import hashlib
import itertools
import json
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.studies import evidence, runs
from benchmarks.studies.evidence import EVERYTHING, NOTHING, PARTS, Row
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.trained import load_split, load_trained

SETTINGS = Path(__file__).with_name("parts.yaml")
RESULTS = Path(__file__).with_name("parts.jsonl")
AS_PUBLISHED = ("--relabel_estimator=attention", "--relabel_evidence=batches")
VARIANTS = {
    "": (),
    "votes": ("--targets=votes",),
    "ema_margin": ("--relabel_policy=ema_margin",),
    "scn": ("--relabel_policy=scn", *AS_PUBLISHED),
    "scn_all": ("--relabel_policy=scn_all", *AS_PUBLISHED),
}
DEVELOPMENT = range(100, 103)  # seeds to choose settings by; their runs are scored on validation
TWICE = "--labels=relabeled"  # train, and once more on what that run made of the labels
SETTLED = tuple(yaml.safe_load(SETTINGS.read_text()))
# Where a try does not say otherwise.
TRIED_ON = {"data": "ferplus", "noise": "symmetric:0.2", "parts": "none"}


class Cell(NamedTuple):
    """One run; its variant is one of VARIANTS, or the options of a try."""

    data: str
    noise: str
    parts: str
    seed: int
    variant: str = ""

    def name(self) -> str:
        """Of its folder."""
        parts = [self.data, self.noise.replace(":", "-"), self.parts.replace(",", "-")]
        variant = self.variant if self.variant in VARIANTS else f"try-{_digest(self.variant)}"
        return "_".join([*parts, *filter(None, [variant]), str(self.seed)])


def cells(group: str) -> Iterator[Cell]:
    """Of a question; seed by seed, so that what is there early is balanced."""
    for seed in range(5 if group == "small" else 3):
        if group == "ablation":
            for noise, parts in itertools.product(("symmetric:0.2", "none"), PARTS):
                yield Cell("ferplus", noise, parts, seed)
        elif group == "small":
            for data, parts in itertools.product(("digits", "synthetic"), PARTS):
                yield Cell(data, "symmetric:0.2", parts, seed)
        elif group == "relabeling":
            for noise, parts in itertools.product(
                ("symmetric:0.1", "symmetric:0.3", "human"), ("none", "uerm")
            ):
                yield Cell("ferplus", noise, parts, seed)
            for variant in ("ema_margin", "scn", "scn_all"):
                yield Cell("ferplus", "symmetric:0.2", "uerm", seed, variant)
            yield Cell("ferplus", "human", "uerm", seed, "ema_margin")
        elif group == "votes":
            for parts in ("none", "supcon"):
                yield Cell("ferplus", "none", parts, seed, "votes")


GROUPS = ("ablation", "small", "relabeling", "votes")


def tries(text: str) -> Iterator[Cell]:
    """Runs with the settings of a data set but for the options in a text, one for each seed."""
    known = set(vars(TrainConfig())) - {"seed", "out"}
    for option in text.split():
        name, equals, _ = option.partition("=")
        if not equals or name not in known:
            sys.exit(f"--tries {text!r}: {option}: expected NAME=VALUE, an option of train")
    given = TRIED_ON | dict(option.split("=", 1) for option in text.split())
    data, noise, parts = (given.pop(name) for name in TRIED_ON)
    if data not in SETTLED:
        sys.exit(f"--tries {text!r}: data: expected one of {', '.join(SETTLED)}, got {data}")
    options = settings(data)[0] | given
    variant = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
    for seed in DEVELOPMENT:
        yield Cell(data, noise, parts, seed, variant)


def settings(data: str) -> tuple[dict[str, Any], str]:
    """Options of every cell on a data set, and their fingerprint."""
    options = yaml.safe_load(SETTINGS.read_text())[data]
    return options, _digest(json.dumps(options, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def options_of(cell: Cell, ferplus: Path | None, human: Path | None) -> list[str]:
    """Return the options of `unmuddle train`."""
    data = f"ferplus:{ferplus}" if cell.data == "ferplus" else cell.data
    noise = f"file:{human}" if cell.noise == "human" else cell.noise
    own = [f"--data={data}", f"--noise={noise}", f"--parts={cell.parts}", f"--seed={cell.seed}"]
    own.append(f"--precision={runs.precision()}")
    if cell.variant not in VARIANTS:
        return [*own, *(f"--{option}" for option in cell.variant.split())]
    common = [f"--{name}={value}" for name, value in settings(cell.data)[0].items()]
    return [*own, *common, *VARIANTS[cell.variant]]


def run_cell(cell: Cell, options: list[str], out: Path) -> Row:
    """Train, or go on where it was stopped; a row of results."""
    path = out / cell.name()
    first = [option for option in options if option != TWICE]
    if first != options:
        before = path.with_name(f"{path.name}_first")
        runs.train_run(first, before)
        options = [*first, f"--labels={before / 'relabeled.csv'}"]
    runs.train_run(options, path)
    split = "val" if cell.seed in DEVELOPMENT else "test"
    row = cell._asdict() | runs.figures(path, split)
    has_leak = cell.parts == "published_arm" and split == "test"
    return row | ({"leak": leak(path)} if has_leak else {})


def leak(run: Path) -> list[Row]:
    """Accuracy with ARM by its affinity in eval, the order of the samples, and the batch size."""
    trained = load_trained(run)
    model, data = trained.model, load_split(trained, split="test")
    assert model.arm is not None
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    orders = {"sorted by class": data.labels.argsort(stable=True), "shuffled": shuffled}
    found = []
    for affinity, (order, ids), batch in itertools.product(
        ("running", "batch"), orders.items(), (1, 16, 64, 256)
    ):
        model.arm.affinity = affinity
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that predictions depend on the batch is the point
            probabilities, labels = runs.predicted(model, data.subset(ids), batch)
        accuracy = float((probabilities.argmax(1) == labels).double().mean())
        found.append({"affinity": affinity, "order": order, "batch": batch, "accuracy": accuracy})
    return found


def run_missing(wanted: Iterable[Cell], ferplus: Path | None, out: Path, jobs: int) -> list[str]:
    """Run every cell that has no row yet, and add it; returns the names of those that failed."""
    done = {row["name"] for row in runs.read_results(RESULTS)}
    missing = [cell for cell in wanted if cell.name() not in done]
    human = None
    if any(cell.data == "ferplus" for cell in missing):
        if ferplus is None:
            sys.exit("--ferplus: is needed for cells that are missing")
        if any(cell.noise == "human" for cell in missing):
            human = runs.human_labels(ferplus, out)
    provenance = {"commit": runs.frozen_commit(SETTINGS)}

    def run(cell: Cell) -> Row:
        row = run_cell(cell, options_of(cell, ferplus, human), out)
        return {"name": cell.name()} | row | provenance | {"settings": settings(cell.data)[1]}

    return runs.run_all(missing, run, RESULTS, jobs)


def quick() -> None:
    """A small study from training to its table: digits, one epoch, one seed."""
    few = ["--data=digits", "--noise=symmetric:0.2", "--epochs=1", "--views=1"]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            run_cell(
                Cell("digits", "symmetric:0.2", parts, 0), [*few, f"--parts={parts}"], Path(folder)
            )
            for parts in (NOTHING, EVERYTHING)
        ]
    print(evidence.ablation(rows, "digits", "symmetric:0.2"))


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ferplus", type=Path, help="FERPlus in its owners' layout")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="questions")
    parser.add_argument("--tries", nargs="+", help="options of runs to choose settings by")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--quick", action="store_true", help="a small study; nothing is kept")
    a = parser.parse_args()
    if a.quick:
        quick()
        return
    failed = []
    if not a.render:
        a.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        chosen = map(tries, a.tries) if a.tries else map(cells, a.only)
        wanted = itertools.chain(*chosen)
        failed = run_missing(wanted, a.ferplus, a.out, a.jobs)
    evidence.render(runs.read_results(RESULTS))
    if failed:
        sys.exit("failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
