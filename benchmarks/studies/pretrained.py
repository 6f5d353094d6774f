"""Fine-tune a network pretrained on faces, by each method, on clean and noisy labels of FERPlus.

    python -m benchmarks.studies.pretrained --ferplus PATH --whole PATH --weights FILE --lite0 FILE
    python -m benchmarks.studies.pretrained --only parts ...   the missing cells of one question
    python -m benchmarks.studies.pretrained --tries "uerm symmetric:0.2 lr=1e-3"   on validation
    python -m benchmarks.studies.pretrained --render                        the page alone

The network is a MobileFaceNet, or for one question an EfficientNet-Lite0. The noise "whole" means
the clean labels of all faces of FERPlus; every other kind is of a subset. Every method costs as
many passes over the faces: a training step on a view counts three, a prediction one. A cell that
was stopped is resumed, and one that has a row in pretrained.jsonl is not run again.
"""

import argparse
import itertools
import json
import signal
import statistics
import sys
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import safetensors.torch
import timm
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from torch import Tensor

from benchmarks.pages import write_sections
from benchmarks.studies import evidence, runs
from benchmarks.studies.evidence import described, paired, select, spread, table
from benchmarks.studies.label_figures import Problem
from benchmarks.studies.labels import noisy_labels, without
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages, load_data
from unmuddle.recipe.decisions import ACCEPT, Row, write_rows
from unmuddle.recipe.run_folder import Epoch
from unmuddle.recipe.tables import write_table
from unmuddle.recipe.trained import as_input, load_trained
from unmuddle.uerm import UERM

RESULTS = Path(__file__).with_name("pretrained.jsonl")
DEVELOPMENT = (100, 101, 102)  # seeds to choose settings by, scored on validation
SETTINGS = {
    "backbone": "mobilefacenet", "image_size": 64, "batch_size": 32, "views": 1, "epochs": 14,
    "lr": 3e-3, "lr_backbone": 1e-3, "precision": runs.precision(),
}  # fmt: skip


def load_uerm(run: Path, problem: Problem) -> UERM:
    """Load what UERM knows after a training."""
    uerm = UERM(problem.given, len(problem.classes))
    uerm.load_state_dict(safetensors.torch.load_file(run / "uerm.safetensors"))
    return uerm


def relabeled(run: Path, problem: Problem) -> Tensor:
    """Labels that UERM left after a first training."""
    return load_uerm(run, problem).ledger.current_labels


def pruned(run: Path, problem: Problem) -> Tensor:
    """Labels without those that cleanlab finds in a first training's predictions."""
    issues = find_label_issues(problem.given.numpy(), predictions(run, problem), n_jobs=1)
    return problem.given.masked_fill(torch.from_numpy(issues), -1)


def verified(run: Path, problem: Problem) -> Tensor:
    """Labels of which a person verified those that cleanlab ranks as most likely wrong."""
    quality = get_label_quality_scores(problem.given.numpy(), predictions(run, problem))
    asked = torch.from_numpy(quality.argsort(kind="stable")[:ASKED])
    labels = problem.given.clone()
    labels[asked] = problem.truth[asked]
    return labels


def predictions(run: Path, problem: Problem) -> np.ndarray:
    """Mean predictions `(n, K)` for the training faces during a training."""
    return load_uerm(run, problem).evidence().predictions.probabilities.double().numpy()


def known(_run: Path, problem: Problem) -> Tensor:
    """Labels without the wrong ones, which nobody knows: the most that pruning can reach."""
    return problem.given.where(problem.given == problem.truth, -1)


class Method(NamedTuple):
    """One training, or a second one that goes on from a first one.

    Attributes:
        options: options of the training that is tested, besides SETTINGS.
        labels: makes its labels from the first training, -1 for faces that are left out.
        first: options of the first training, if there is one.
        asks: number of labels that a person verifies at the end of the warm-up.
    """

    options: str
    labels: Callable[[Path, Problem], Tensor] | None = None
    first: str = ""
    asks: int = 0


ASKED = 200  # labels that a person verifies
# Methods share this training. UERM relabels after its last epoch, so that it is one without UERM.
FIRST = "parts=uerm epochs=6 warmup=1"
UERM_COST = "epochs=10 warmup=0.5"  # 12 of the passes are predictions
CORRECTED = "parts=uerm relabel_loss=corrected relabel_evidence=batches warmup=0.15"
METHODS = {
    "none": Method("parts=none"),
    "supcon": Method("parts=supcon"),
    "arm": Method("parts=arm"),
    "supcon,arm": Method("parts=supcon,arm"),
    "uerm": Method(f"parts=uerm {UERM_COST}"),
    "supcon,uerm": Method(f"parts=supcon,uerm {UERM_COST}"),
    "arm,uerm": Method(f"parts=arm,uerm {UERM_COST}"),
    "supcon,arm,uerm": Method(f"parts=supcon,arm,uerm {UERM_COST}"),
    "published_arm": Method("parts=published_arm"),
    "supcon,published_arm,uerm": Method(f"parts=supcon,published_arm,uerm {UERM_COST}"),
    "corrected": Method(CORRECTED),
    "label smoothing": Method("parts=none label_smoothing=0.1"),
    "ema_margin": Method(f"parts=uerm {UERM_COST} relabel_policy=ema_margin"),
    "cleanlab": Method("parts=none epochs=7", pruned, FIRST),
    "twice": Method("parts=none epochs=7", relabeled, FIRST),
    "verified": Method("parts=none epochs=7", verified, FIRST),
    "answers": Method(CORRECTED, asks=ASKED),
    "answers_500": Method(CORRECTED, asks=500),
    "known": Method("parts=none", known),
    "votes": Method("parts=none targets=votes"),
    "supcon, votes": Method("parts=supcon targets=votes"),
}
PARTS = tuple(METHODS)[:8]
NOISY = ("human", "symmetric:0.2")
INSTEAD = (
    "none", "uerm", "corrected", "answers", "label smoothing", "ema_margin", "cleanlab", "twice",
    "verified", "known",
)  # fmt: skip
GROUPS = {
    "main": [("none", *NOISY), ("none", "answers")],
    "instead": [NOISY, INSTEAD],
    "parts": [("none", *NOISY), PARTS],
    "published": [("none", *NOISY), tuple(METHODS)[8:10]],
    "rates": [("symmetric:0.1", "symmetric:0.3"), ("none", "uerm", "label smoothing", "cleanlab")],
    "votes": [("none",), ("votes", "supcon, votes")],
    "whole": [("whole",), ("none", "supcon,arm,uerm")],
    "lite0": [("human",), ("none", "answers")],
}
EPOCHS: tuple[Epoch, ...] = ("last", "best")
LITE0 = "backbone=tf_efficientnet_lite0"
SEEDS = dict.fromkeys(GROUPS, 3) | {"main": 5}
_LOCKS = defaultdict[Path, Lock](Lock)


class Cell(NamedTuple):
    """One method on one kind of labels; `options` are those of a try."""

    method: str
    noise: str
    seed: int
    options: str = ""

    def name(self) -> str:
        """Name of its folder."""
        text = "_".join(map(str, self[:3]))
        text += f"_{self.options}" if self.options else ""
        return text.replace(" ", "-").replace(",", "-").replace(":", "-")


def cells(groups: Iterable[str]) -> Iterator[Cell]:
    """All cells of some questions, seed by seed."""
    for seed, group in itertools.product(range(max(SEEDS.values())), groups):
        if seed < SEEDS[group]:
            for method, noise in itertools.product(*reversed(GROUPS[group])):
                yield Cell(method, noise, seed, LITE0 if group == "lite0" else "")


def tries(texts: Iterable[str]) -> Iterator[Cell]:
    """Cells of tries, each `METHOD NOISE OPTION=VALUE ...`, seed by seed."""
    for seed, text in itertools.product(DEVELOPMENT, texts):
        method, noise, *options = text.split()
        yield Cell(method, noise, seed, " ".join(options))


def first_relabeling(options: dict[str, str]) -> int:
    """Epoch at whose end UERM first relabels."""
    config = TrainConfig(epochs=int(options["epochs"]), parts=options["parts"])
    config.warmup = float(options.get("warmup", config.warmup))
    return max(1, config.first_relabeling())


def passes(options: dict[str, str]) -> int:
    """Forward passes over the training faces; a training step on a view counts three."""
    epochs = int(options["epochs"])
    observed = max(1, epochs + 1 - first_relabeling(options))
    if options.get("relabel_evidence") == "batches":  # the predictions of the training steps
        observed = 0
    return 3 * epochs * int(options["views"]) + 2 * observed  # a face and its mirror image


def lite0_weights(path: Path, out: Path) -> Path:
    """Write EfficientNet-Lite0's weights, which are in the order of timm's, under timm's names."""
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = out / "lite0.pt"
    torch.save(dict(zip(names, values, strict=True)), renamed)
    return renamed


def run_cell(cell: Cell, ferplus: Path, whole: Path, weights: Path, out: Path) -> evidence.Row:
    """Run the trainings of a cell, or resume them; return a row of results."""
    method, path, noise = METHODS[cell.method], out / cell.name(), cell.noise
    if noise == "whole":
        ferplus, noise = whole, "none"
    problem = noisy_labels(noise, cell.seed, ferplus, out)
    labels, cost, seconds = problem.given, 0, 0.0

    def chosen(stage: str) -> dict[str, str]:
        given = dict(option.split("=") for option in stage.split())
        return {name: str(value) for name, value in SETTINGS.items()} | given

    def train(stage: str, run: Path, weights: Path, *more: str) -> None:
        nonlocal cost, seconds
        options = chosen(stage)
        faces = ferplus
        if dropped := {problem.sources[i] for i in (labels < 0).nonzero()[:, 0].tolist()}:
            faces = without(ferplus, dropped, run.with_name(f"{run.name}_faces"))
        options |= {"data": f"ferplus:{faces}", "weights": str(weights), "seed": str(cell.seed)}
        if not labels.equal(problem.truth):
            table = write_labels(labels, problem, run.with_name(f"{run.name}.csv"))
            options |= {"noise": f"file:{table}"}
        runs.train_run([f"--{name}={value}" for name, value in options.items()], run, *more)
        summary = json.loads((run / "summary.json").read_text())
        if summary["status"] == "finished":
            cost += passes(options)
            seconds += summary["seconds"]

    more, stage = list[str](), f"{method.options} {cell.options}"
    first = out / Cell("first", cell.noise, cell.seed).name()
    if method.first:
        with _LOCKS[first]:
            train(method.first, first, weights)
        weights = first / "model.safetensors"
    if method.labels is not None:
        labels = method.labels(first, problem)
    if method.asks:
        verified = path.with_name(f"{path.name}_verified.csv")
        if not verified.exists():
            train(stage, path, weights, f"--pause_after={first_relabeling(chosen(stage))}")
            write_rows(verified, answers(path, problem, ferplus, method.asks))
        more = [f"--labels={verified}"]
    train(stage, path, weights, *more)
    is_try = cell.seed in DEVELOPMENT
    row = runs.outcome(path) | {"split": "val" if is_try else "test"}
    for epoch in EPOCHS:
        row[epoch] = runs.scores(path, row["split"], epoch)
        if cell.noise != "whole":
            further = further_faces(ferplus, whole)[not is_try]
            row[epoch] |= on_further_faces(path, further, epoch)
    kept = labels >= 0
    if method.labels is not None:
        row["after"] = float((labels == problem.truth)[kept].double().mean())
    before = float((problem.given == problem.truth).double().mean())
    used = {"faces": int(kept.sum()), "passes": cost, "before": before}
    return cell._asdict() | row | used | {"seconds": round(seconds)}


@cache
def further_faces(ferplus: Path, whole: Path) -> tuple[LabeledImages, LabeledImages]:
    """Training faces of FERPlus that the subset lacks: a half for tries, and a half to test on."""
    in_subset = {Path(name).name for name in load_data(f"ferplus:{ferplus}").train.sources or ()}
    data = load_data(f"ferplus:{whole}", image_size=int(SETTINGS["image_size"])).train
    further = [i for i in range(len(data)) if Path(data.source(i)).name not in in_subset]
    tried, tested = (data.subset(torch.tensor(further[half::2]).long()) for half in range(2))
    return tried, tested


def on_further_faces(run: Path, data: LabeledImages, epoch: Epoch) -> evidence.Row:
    """Score a network on faces that it was not trained on; its hits are packed bits."""
    if not len(data):
        return {"further": 0, "further_accuracy": None, "further_right": ""}
    trained = load_trained(run, epoch)
    probabilities, labels = runs.predicted(trained.model, as_input(trained, data))
    right = (probabilities.argmax(1) == labels).numpy()
    packed = b64encode(np.packbits(right)).decode()
    return {"further": len(right), "further_accuracy": float(right.mean()), "further_right": packed}


def at(rows: list[evidence.Row], epoch: Epoch) -> list[evidence.Row]:
    """Rows with the scores of one epoch."""
    return [row | row[epoch] for row in rows if epoch in row]


def answers(run: Path, problem: Problem, ferplus: Path, number: int) -> Iterator[Row]:
    """Yield a person's decisions about the labels that a paused run asks to verify."""
    faces = load_data(f"ferplus:{ferplus}").train
    for asked in load_uerm(run, problem).suggest(number, to_verify=True):
        i = asked.sample
        given, true = (problem.classes[int(y[i])] for y in (problem.given, problem.truth))
        yield Row(i, "train", faces.source(i), given, true, ACCEPT, faces.content(i))


def write_labels(labels: Tensor, problem: Problem, path: Path) -> Path:
    """Write the labels of the faces that are left as `--noise file:` reads them."""
    rows = zip(problem.sources, labels.tolist(), strict=True)
    found = ((Path(source).name, problem.classes[y]) for source, y in rows if y >= 0)
    write_table(path, ("name", "label"), found)
    return path


COLUMNS = (
    "method", "seeds", "faces", "points above none", "test accuracy", "further faces",
    "mean class accuracy", "calibration error", "vote log loss", "labels right", "passes",
    "minutes",
)  # fmt: skip
FIGURES = (
    "accuracy", "further_accuracy", "mean_class_accuracy", "calibration", "vote_log_loss", "after"
)  # fmt: skip
CAPTIONS = {
    "last": "Weights of the last epoch:",
    "best": "Weights of the epoch with the best accuracy on clean validation labels:",
}


def comparison(rows: list[evidence.Row], noise: str, options: str = "") -> str:
    """Every method on one kind of labels, against plain cross-entropy, at both epochs."""
    rows = select(rows, noise=noise, split="test", options=options)
    if not rows:
        return "Not run yet."
    early = [row | {"method": "early stopping"} for row in select(at(rows, "best"), method="none")]
    tables = {"last": compared(at(rows, "last") + early), "best": compared(at(rows, "best"))}
    return "\n\n".join(f"{CAPTIONS[epoch]}\n\n{text}" for epoch, text in tables.items())


def compared(rows: list[evidence.Row]) -> str:
    """Every method against plain cross-entropy."""
    base = select(rows, method="none")
    lines = []
    for method in ("none", "early stopping", *[*METHODS][1:]):
        if found := select(rows, method=method):
            points = described(paired(base, found))[0] if method != "none" else ""
            faces = round(statistics.mean(row["faces"] for row in found))
            minutes = round(statistics.mean(row["seconds"] for row in found) / 60)
            figures = [spread(row.get(name) for row in found) for name in FIGURES]
            shown = [method, len(found), f"{faces:,}", points, *figures, found[0]["passes"]]
            lines.append([*shown, minutes])
    return table(COLUMNS, lines)


def tried(rows: list[evidence.Row]) -> str:
    """Validation accuracy of every try."""
    found: dict[tuple[str, ...], list[evidence.Row]] = {}
    for row in at(select(rows, split="val"), "best"):
        found.setdefault((row["method"], row["noise"], row["options"]), []).append(row)
    lines = [
        [*key, len(same), spread(row["last"]["accuracy"] for row in same)]
        + [spread(row.get(name) for row in same) for name in FIGURES[:4]]
        for key, same in sorted(found.items())
    ]
    columns = ["method", "noise", "other options", "seeds", "last epoch", "best epoch"]
    return table([*columns, *COLUMNS[5:8]], lines)


def rates(rows: list[evidence.Row]) -> str:
    """The comparisons at other noise rates, one after the other."""
    return "\n\n".join(
        f"{noise.partition(':')[2]} of the labels flipped:\n\n{comparison(rows, noise)}"
        for noise in GROUPS["rates"][0]
    )


SECTIONS: dict[str, Callable[[list[evidence.Row]], str]] = {
    "symmetric": partial(comparison, noise="symmetric:0.2"),
    "human": partial(comparison, noise="human"),
    "clean": partial(comparison, noise="none"),
    "whole": partial(comparison, noise="whole"),
    "rates": rates,
    "lite0": partial(comparison, noise="human", options=LITE0),
    "tries": tried,
}


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ferplus", type=Path, help="FERPlus in its owners' layout")
    parser.add_argument("--whole", type=Path, help="the same with all training faces")
    parser.add_argument("--weights", type=Path, help="MobileFaceNet's weights")
    parser.add_argument("--lite0", type=Path, help="EfficientNet-Lite0's weights, as PyPI has them")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=tuple(GROUPS))
    parser.add_argument("--tries", nargs="+", help="runs to choose settings by, on validation")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"), help="folder of runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--render", action="store_true", help="run nothing")
    a = parser.parse_args()
    failed = []
    if not a.render:
        if None in (a.ferplus, a.whole, a.weights, a.lite0):
            sys.exit("--ferplus, --whole, --weights, --lite0: needed for cells that are missing")
        a.out.mkdir(parents=True, exist_ok=True)
        lite0 = lite0_weights(a.lite0, a.out)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        wanted = tries(a.tries) if a.tries else cells(a.only)

        def run(cell: Cell) -> evidence.Row:
            weights = lite0 if cell.options == LITE0 else a.weights
            return run_cell(cell, a.ferplus, a.whole, weights, a.out)

        failed = runs.run_missing(wanted, run, RESULTS, a.jobs, Path(__file__))
    write_sections("evidence.md", SECTIONS, runs.read_results(RESULTS))
    if failed:
        sys.exit("failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
