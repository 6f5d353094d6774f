"""Compare UERM with cleanlab: finding and repairing wrong labels with a fine-tuned network.

    python -m benchmarks.studies.labels --ferplus PATH --weights FILE   missing cells, then the page
    python -m benchmarks.studies.labels --only uerm cleanlab ...        without the folds
    python -m benchmarks.studies.labels --analysis                      time and memory, no training
    python -m benchmarks.studies.labels --render                        docs/pages/labels.md alone

The true labels are FERPlus' majority labels. The noise is symmetric, pair noise, or FER2013's own
labels of the same faces. `uerm` is one training with UERM. `cleanlab` is one training without it;
cleanlab judges the predictions of the training samples. `folds` are five trainings on four fifths
each, which predict the held-out fifth. A cell that was stopped is resumed.
"""

import argparse
import csv
import itertools
import json
import shutil
import signal
import statistics
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from cleanlab.filter import find_label_issues
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.pages import write_sections
from benchmarks.studies import runs
from benchmarks.studies.evidence import Row
from benchmarks.studies.label_figures import Problem, of_cleanlab, of_uerm
from benchmarks.studies.label_tables import SECTIONS
from benchmarks.timings.timing import extra_megabytes, take_turns
from unmuddle.recipe.backbones import build_backbone
from unmuddle.recipe.data import load_data
from unmuddle.recipe.data.noise import pair_noise, symmetric_noise
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.tables import write_table
from unmuddle.recipe.trained import load_split, load_trained
from unmuddle.uerm import Distribution, bayes, gather_evidence

RESULTS = Path(__file__).with_name("labels.jsonl")
NOISES = ("human", "symmetric", "pair", "none")
KINDS = ("uerm", "cleanlab", "folds")
SEEDS = (1, 2, 3)  # the defaults of UERM were developed on seed 0
FOLDS, RATE = 5, 0.2
SETTINGS = {
    "backbone": "mobilefacenet", "image_size": 80, "epochs": 6, "lr": 3e-3, "lr_backbone": 1e-3,
    "precision": runs.precision(),
}  # fmt: skip


class Cell(NamedTuple):
    """One comparison's trainings."""

    noise: str
    kind: str
    seed: int

    def name(self) -> str:
        """Name of its folder."""
        return f"{self.noise}_{self.kind}_{self.seed}"


def cells(kinds: Iterable[str] = KINDS) -> Iterator[Cell]:
    """All cells, seed by seed. Clean labels need no ranking."""
    for seed, kind, noise in itertools.product(SEEDS, KINDS, NOISES):
        if kind in kinds and (noise != "none" or kind == "uerm"):
            yield Cell(noise, kind, seed)


def noisy_labels(noise: str, seed: int, ferplus: Path, out: Path) -> Problem:
    """Return labels that are human, clean (none), or noisy (symmetric, pair:0.3)."""
    splits = load_data(f"ferplus:{ferplus}")
    truth, classes = splits.train.labels, splits.classes
    sources = [splits.train.source(i) for i in range(len(truth))]
    if noise == "human":
        with runs.human_labels(ferplus, out).open(newline="") as file:
            labels = {row["name"]: classes.index(row["label"]) for row in csv.DictReader(file)}
        given = torch.tensor([labels[Path(source).name] for source in sources])
    elif noise == "none":
        given = truth.clone()
    else:
        kind, _, rate = noise.partition(":")
        add_noise = symmetric_noise if kind == "symmetric" else pair_noise
        given = add_noise(truth, len(classes), float(rate or RATE), seed)
    return Problem(given, truth, sources, classes)


def run_cell(cell: Cell, ferplus: Path, weights: Path, out: Path, commit: str) -> Row:
    """Run the trainings of a cell, or resume them; return a row of results."""
    problem = noisy_labels(cell.noise, cell.seed, ferplus, out)
    path, noisy = out / cell.name(), out / f"{cell.noise}_{cell.seed}.csv"
    began = out / f"{cell.name()}.commit"
    if not began.exists():
        began.write_text(commit)
    rows = zip(problem.sources, problem.given.tolist(), strict=True)
    write_table(
        noisy, ("name", "label"), ((Path(name).name, problem.classes[y]) for name, y in rows)
    )
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    options += [f"--weights={weights}", f"--noise=file:{noisy}", f"--seed={cell.seed}"]
    options += [f"--parts={'uerm' if cell.kind == 'uerm' else 'none'}"]
    folders = []
    if cell.kind == "folds":
        probabilities = torch.zeros(len(problem.given), len(problem.classes))
        split = StratifiedKFold(FOLDS, shuffle=True, random_state=cell.seed)
        for fold, (_, held_out) in enumerate(split.split(problem.given, problem.given)):
            folders.append(path / f"run{fold}")
            faces = without(ferplus, {problem.sources[i] for i in held_out}, path / f"faces{fold}")
            runs.train_run([f"--data=ferplus:{faces}", *options], folders[-1])
            probabilities[held_out] = predicted(folders[-1], ferplus, torch.from_numpy(held_out))
            shutil.rmtree(faces)
        figures = of_cleanlab(problem, probabilities)
    else:
        folders.append(path)
        runs.train_run([f"--data=ferplus:{ferplus}", *options], path)
        state = safetensors.torch.load_file(path / "uerm.safetensors")
        mean, labels = state["predictions.mean"], state["ledger.current_labels"]
        if cell.kind == "uerm":
            features = frozen_features(ferplus, weights)
            figures = of_uerm(problem, Distribution(mean), labels, features, cell.seed)
        else:
            figures = of_cleanlab(problem, mean)
    summaries = [json.loads((run / "summary.json").read_text()) for run in folders]
    return {
        "commit": began.read_text(),
        "before": float((problem.given == problem.truth).double().mean()),
        "test": None if len(folders) > 1 else summaries[0]["test_last_epoch"]["accuracy"],
        "seconds": round(sum(summary["seconds"] for summary in summaries)),
        **figures,
    }


@cache
@torch.no_grad()
def frozen_features(ferplus: Path, weights: Path) -> Tensor:
    """Pooled features `(n, C)` of the training faces before fine-tuning."""
    size = int(SETTINGS["image_size"])
    data = load_data(f"ferplus:{ferplus}").train
    data.transform = v2.Resize((size, size), antialias=True)
    backbone = build_backbone(str(SETTINGS["backbone"]), size, weights=str(weights))
    model = Classifier(backbone, 2, ()).eval()
    batches = DataLoader(data, batch_size=128)
    return torch.cat([model(model.standardize(images)).features for images, _ in batches])


def without(ferplus: Path, names: set[str], out: Path) -> Path:
    """Link to FERPlus without some of the training faces."""
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
    """Mean probabilities of training faces and their mirror images."""
    trained = load_trained(run)
    data = load_split(trained, f"ferplus:{ferplus}", "train").subset(ids)
    resize, views = data.transform, []
    for mirror in (False, True):
        data.transform = v2.Compose([resize, v2.RandomHorizontalFlip(float(mirror))])
        views.append(runs.predicted(trained.model, data)[0])
    return torch.stack(views).mean(0)


def run_missing(
    kinds: Iterable[str], ferplus: Path, weights: Path, out: Path, jobs: int
) -> list[str]:
    """Run every cell that has no row yet, and add it; return descriptions of failed cells."""
    done = {row["name"] for row in runs.read_results(RESULTS)}
    commit = runs.frozen_commit(*Path(__file__).parent.glob("*.py"))

    def run(cell: Cell) -> Row:
        row = run_cell(cell, ferplus, weights, out, commit)
        return {"name": cell.name(), **cell._asdict(), **row}

    missing = [cell for cell in cells(kinds) if cell.name() not in done]
    return runs.run_all(missing, run, RESULTS, jobs)


def analysis_cost(samples: int = 300_000, classes: int = 8) -> Row:
    """Measure seconds and megabytes of judging labels without training, on one thread."""
    torch.set_num_threads(1)
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
        runs.add_result(analysis_cost(), RESULTS)
    elif not a.render:
        if a.ferplus is None or a.weights is None:
            sys.exit("--ferplus, --weights: are needed for cells that are missing")
        a.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        failed = run_missing(a.only, a.ferplus, a.weights, a.out, a.jobs)
    write_sections("labels.md", SECTIONS, runs.read_results(RESULTS))
    if failed:
        sys.exit("failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
