"""How well wrong labels are found and repaired, beside cleanlab, on one fine-tuned network.

    python benchmarks/labels.py --ferplus PATH --weights FILE   cells that are missing, and the page
    python benchmarks/labels.py --only uerm cleanlab ...        not the folds, which take longest
    python benchmarks/labels.py --analysis                      time and memory without training
    python benchmarks/labels.py --render                        what is there, docs/pages/labels.md

FERPlus' majority labels are the truth. What is given is noise of chance, of pairs of classes, or
FER2013's own labels of the same faces. `uerm` is one training with UERM; `cleanlab` one training
without, whose predictions of its own training samples cleanlab judges; `folds` five trainings, each
on four fifths, which predict the fifth that they have not seen. A cell that was stopped is resumed.
"""

import argparse
import csv
import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from cleanlab.filter import find_label_issues
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import study
from evidence import Row, spread, table
from label_figures import ANSWERS, Problem, of_cleanlab, of_uerm
from pages import write_section
from timing import extra_megabytes, take_turns
from unmuddle.recipes.backbones import build_backbone
from unmuddle.recipes.data import load_data
from unmuddle.recipes.data.noise import pair_noise, symmetric_noise
from unmuddle.recipes.model import Classifier
from unmuddle.recipes.run_folder import write_whole
from unmuddle.recipes.trained import load_split, load_trained
from unmuddle.uerm import Distribution, bayes, gather_evidence

RESULTS = Path(__file__).with_name("labels.jsonl")
NOISES = ("human", "symmetric", "pair", "none")
KINDS = ("uerm", "cleanlab", "folds")
SEEDS = (1, 2, 3)  # the defaults of UERM were developed on seed 0
FOLDS, RATE = 5, 0.2
SETTINGS = {
    "backbone": "mobilefacenet", "image_size": 80, "epochs": 6, "lr": 3e-3, "lr_backbone": 1e-3,
    "precision": study.precision(),
}  # fmt: skip


class Cell(NamedTuple):
    """One comparison's trainings."""

    noise: str
    kind: str
    seed: int

    def name(self) -> str:
        """Of its folder."""
        return f"{self.noise}_{self.kind}_{self.seed}"


def cells(kinds: Iterable[str] = KINDS) -> Iterator[Cell]:
    """Seed by seed, so that what is there early is balanced; clean labels need no ranking."""
    for seed, kind, noise in itertools.product(SEEDS, KINDS, NOISES):
        if kind in kinds and (noise != "none" or kind == "uerm"):
            yield Cell(noise, kind, seed)


def problem(noise: str, seed: int, ferplus: Path, out: Path) -> Problem:
    """Labels of a cell."""
    splits = load_data(f"ferplus:{ferplus}")
    truth, classes = splits.train.labels, splits.classes
    sources = [splits.train.source(i) for i in range(len(truth))]
    if noise == "human":
        with study.human_labels(ferplus, out).open(newline="") as file:
            labels = {row["name"]: classes.index(row["label"]) for row in csv.DictReader(file)}
        given = torch.tensor([labels[Path(source).name] for source in sources])
    elif noise == "none":
        given = truth.clone()
    else:
        of_chance = symmetric_noise if noise == "symmetric" else pair_noise
        given = of_chance(truth, len(classes), RATE, seed)
    return Problem(given, truth, sources, classes)


def run_cell(cell: Cell, ferplus: Path, weights: Path, out: Path) -> Row:
    """Train what the cell needs, or go on where it was stopped; a row of results."""
    truth = problem(cell.noise, cell.seed, ferplus, out)
    noisy = out / f"{cell.noise}_{cell.seed}.csv"
    with noisy.open("w", newline="") as file:
        csv.writer(file).writerow(("name", "label"))
        rows = zip(truth.sources, truth.given.tolist(), strict=True)
        csv.writer(file).writerows((Path(name).name, truth.classes[y]) for name, y in rows)
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    options += [f"--weights={weights}", f"--noise=file:{noisy}", f"--seed={cell.seed}"]
    options += [f"--parts={'uerm' if cell.kind == 'uerm' else 'none'}"]
    path = out / cell.name()
    runs = []
    if cell.kind == "folds":
        probabilities = torch.zeros(len(truth.given), len(truth.classes))
        split = StratifiedKFold(FOLDS, shuffle=True, random_state=cell.seed)
        for fold, (_, held_out) in enumerate(split.split(truth.given, truth.given)):
            runs.append(path / f"run{fold}")
            faces = without(ferplus, {truth.sources[i] for i in held_out}, path / f"faces{fold}")
            study.train_run([f"--data=ferplus:{faces}", *options], runs[-1])
            probabilities[held_out] = predicted(runs[-1], ferplus, torch.from_numpy(held_out))
            shutil.rmtree(faces)
        figures = of_cleanlab(truth, probabilities)
    else:
        runs.append(path)
        study.train_run([f"--data=ferplus:{ferplus}", *options], path)
        state = safetensors.torch.load_file(path / "uerm.safetensors")
        mean, labels = state["predictions.mean"], state["ledger.current_labels"]
        if cell.kind == "uerm":
            features = frozen_features(ferplus, weights)
            figures = of_uerm(truth, Distribution(mean), labels, features)
        else:
            figures = of_cleanlab(truth, mean)
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    return {
        "before": float((truth.given == truth.truth).double().mean()),
        "test": None if len(runs) > 1 else summaries[0]["test_last_epoch"]["accuracy"],
        "seconds": round(sum(summary["seconds"] for summary in summaries)),
        **figures,
    }


@torch.no_grad()
def frozen_features(ferplus: Path, weights: Path) -> Tensor:
    """Averaged feature map `(n, C)` of each training face, before fine-tuning."""
    size = int(SETTINGS["image_size"])
    data = load_data(f"ferplus:{ferplus}").train
    data.transform = v2.Resize((size, size), antialias=True)
    backbone = build_backbone(str(SETTINGS["backbone"]), size, weights=str(weights))
    model = Classifier(backbone, 2, arm=False, supcon=False).eval()
    batches = DataLoader(data, batch_size=128)
    return torch.cat([model(model.standardize(images)).features for images, _, _ in batches])


def without(ferplus: Path, names: set[str], out: Path) -> Path:
    """FERPlus' folder, by links, without some of the training faces."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    names = {Path(name).name for name in names}
    for part in ("FER2013Valid", "FER2013Test"):
        (out / part).symlink_to((ferplus / part).absolute())
    (out / "FER2013Train").mkdir()
    lines = (ferplus / "FER2013Train" / "label.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.partition(",")[0] not in names]
    (out / "FER2013Train" / "label.csv").write_text("".join(kept))
    for line in kept:
        name = line.partition(",")[0]
        face = (ferplus / "FER2013Train" / name).absolute()
        (out / "FER2013Train" / name).symlink_to(face)
    return out


def predicted(run: Path, ferplus: Path, ids: Tensor) -> Tensor:
    """Probabilities of training faces and their mirror images, as UERM is shown them."""
    trained = load_trained(run)
    data = load_split(trained, f"ferplus:{ferplus}", "train").subset(ids)
    resize, views = data.transform, []
    for mirror in (False, True):
        data.transform = v2.Compose([resize, v2.RandomHorizontalFlip(float(mirror))])
        views.append(study.predicted(trained.model, data)[0])
    return torch.stack(views).mean(0)


def read_results() -> list[Row]:
    """Rows of the cells that are done."""
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def add_result(row: Row) -> None:
    """Write the file anew, sorted, whole or not at all."""
    others = [other for other in read_results() if other["name"] != row["name"]]
    rows = sorted([*others, row], key=lambda row: row["name"])
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    write_whole(RESULTS, lambda partial: partial.write_text(text))
    print(row, flush=True)


def run_missing(
    kinds: Iterable[str], ferplus: Path, weights: Path, out: Path, jobs: int
) -> list[str]:
    """Run every cell that has no row yet, and add it; returns the names of those that failed."""
    done = {row["name"] for row in read_results()}
    failed, commit = [], study.frozen_commit(Path(__file__))
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(jobs)
    missing = [cell for cell in cells(kinds) if cell.name() not in done]
    try:
        runs = {pool.submit(run_cell, cell, ferplus, weights, out): cell for cell in missing}
        for run in as_completed(runs):
            cell = runs[run]
            try:
                row = {"name": cell.name(), **cell._asdict(), "commit": commit, **run.result()}
            except (
                subprocess.CalledProcessError,
                OSError,
                KeyError,
                ValueError,
                RuntimeError,
            ) as error:
                failed.append(f"{cell.name()}: {error!r}")
                continue
            add_result(row)
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def analysis_cost(samples: int = 300_000, classes: int = 8) -> Row:
    """Seconds and megabytes of judging labels, without any training."""
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(classes, (samples,), generator=g)
    given = symmetric_noise(truth, classes, RATE, 0)
    logits = torch.randn(samples, classes, generator=g) + 4 * torch.eye(classes)[truth]
    p = logits.softmax(1)

    def ours() -> None:
        bayes(gather_evidence(Distribution(p), given, classes))

    def cleanlab() -> None:
        find_label_issues(
            given.numpy(), p.numpy(), return_indices_ranked_by="normalized_margin", n_jobs=1
        )

    calls = {"unmuddle": ours, "cleanlab": cleanlab}
    seconds = take_turns(calls, repeats=3)
    return {"name": "analysis", "noise": "", "kind": "analysis", "seed": 0} | {
        name: {"seconds": statistics.median(seconds[name]), "megabytes": extra_megabytes(call)}
        for name, call in calls.items()
    }


# What the page says.

TITLES = {
    "human": "people's", "symmetric": "20 % by chance", "pair": "20 % by the next class",
    "none": "none",
}  # fmt: skip


def select(rows: list[Row], noise: str, kind: str) -> list[Row]:
    """Rows of a kind, by seed."""
    return [row for row in rows if (row["noise"], row["kind"]) == (noise, kind)]


def best(rows: list[Row], field: str, value: Callable[[Any], float]) -> str | None:
    """The name of cleanlab's score or filter that is best on average: chosen by the truth."""
    if not rows:
        return None
    return max(rows[0][field], key=lambda name: sum(value(row[field][name]) for row in rows))


def ranking_table(rows: list[Row]) -> str:
    """Average precision, in percent."""
    lines = []
    for noise in NOISES[:-1]:
        ours = select(rows, noise, "uerm")
        line = [TITLES[noise], spread(1 - row["before"] for row in ours)]
        for kind in ("cleanlab", "folds"):
            theirs = select(rows, noise, kind)
            name = best(theirs, "rankings", float)
            line.append(
                f"{spread(row['rankings'][name] for row in theirs)} ({name})" if name else "-"
            )
        line += [
            spread(row["self_confidence"] for row in ours),
            spread(row["ranking"] for row in ours),
        ]
        line += [spread(row[f"answers_{n}"]["ranking"] for row in ours) for n in ANSWERS]
        lines.append(line)
    answers = [f"after {n} answers" for n in ANSWERS]
    return table(
        [
            "noise",
            "chance",
            "cleanlab",
            f"cleanlab, {FOLDS} folds",
            "UERM's 1 - p(label)",
            "UERM",
            *answers,
        ],
        lines,
    )


def repair_table(rows: list[Row]) -> str:
    """Labels right after, and precision, in percent."""

    def cell(found: list[Row]) -> str:
        if not found:
            return "-"
        return f"{spread(r['after'] for r in found)} ({spread(r['precision'] for r in found)})"

    lines = []
    for noise in NOISES:
        ours = select(rows, noise, "uerm")
        line = [TITLES[noise], spread(row["before"] for row in ours)]
        for kind in ("cleanlab", "folds"):
            theirs = select(rows, noise, kind)
            name = best(theirs, "repairs", lambda repair: repair["after"])
            line.append(f"{cell([row['repairs'][name] for row in theirs])} {name}" if name else "-")
        line.append(cell([row["repair"] for row in ours]))
        answered = [row[f"answers_{ANSWERS[-1]}"] for row in ours if noise != "none"]
        line += [cell([row[field] for row in answered]) for field in ("repair", "strict")]
        lines.append(line)
    answers = f"after {ANSWERS[-1]} answers"
    return table(
        [
            "noise",
            "before",
            "cleanlab",
            f"cleanlab, {FOLDS} folds",
            "UERM",
            answers,
            f"{answers}, strict",
        ],
        lines,
    )


def cost_table(rows: list[Row]) -> str:
    """Test accuracy of the networks, and minutes of their trainings on one core."""
    lines = []
    for noise in NOISES[:-1]:
        found = {kind: select(rows, noise, kind) for kind in KINDS}
        minutes = [spread(r["seconds"] / 6000 for r in found[kind]) for kind in KINDS]
        tests = [spread(r["test"] for r in found[kind]) for kind in ("uerm", "cleanlab")]
        lines.append([TITLES[noise], *tests, *minutes])
    return table(
        [
            "noise",
            "test accuracy with UERM",
            "without",
            "minutes with UERM",
            "without",
            f"{FOLDS} folds",
        ],
        lines,
    )


def analysis_table(rows: list[Row]) -> str:
    """Of `analysis_cost`."""
    found = [row for row in rows if row["name"] == "analysis"]
    lines = [
        [name, f"{row[name]['seconds']:.2f}", f"{row[name]['megabytes']:.0f}"]
        for row in found
        for name in ("unmuddle", "cleanlab")
    ]
    return table(["", "seconds", "megabytes"], lines)


def tries_table(rows: list[Row]) -> str:
    """Of every approach: ranking, and labels right after with their precision."""
    found = {noise: select(rows, noise, "uerm") for noise in NOISES}
    if not all(found.values()):
        return "Not run yet."
    lines = []
    for name in found["none"][0]["tries"]:
        line = [name]
        for noise, ours in found.items():
            of_noise = [row["tries"][name] for row in ours]
            line += [] if noise == "none" else [spread(t["ranking"] for t in of_noise)]
            after = spread(t["repair"]["after"] for t in of_noise)
            precision = spread(t["repair"]["precision"] for t in of_noise)
            line.append(after if noise == "none" else f"{after} ({precision})")
        lines.append(line)
    columns = [
        column
        for noise in NOISES
        for column in ([f"{TITLES[noise]}: ranking"] if noise != "none" else [])
        + [f"{TITLES[noise]}: right after"]
    ]
    return table(["approach", *columns], lines)


SECTIONS = {
    "ranking": ranking_table,
    "repair": repair_table,
    "tries": tries_table,
    "cost": cost_table,
    "analysis": analysis_table,
}


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ferplus", type=Path, help="FERPlus in its owners' layout")
    parser.add_argument("--weights", type=Path, help="MobileFaceNet's weights")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, default=Path("runs/labels"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--analysis", action="store_true", help="time the judging alone")
    a = parser.parse_args()
    failed = []
    if a.analysis:
        add_result(analysis_cost())
    elif not a.render:
        if a.ferplus is None or a.weights is None:
            sys.exit("--ferplus, --weights: are needed for cells that are missing")
        a.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        failed = run_missing(a.only, a.ferplus, a.weights, a.out, a.jobs)
    for name, text in SECTIONS.items():
        write_section("labels.md", name, text(read_results()))
    if failed:
        sys.exit("failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
