"""A run killed at any moment goes on to what it would have been, bit for bit."""

import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console

from tests.helpers import thinned
from tests.helpers.layouts import make_folder
from tests.helpers.processes import FORKS, unmuddle
from tests.helpers.trainings import built
from unmuddle.cli import main
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import load_data
from unmuddle.recipe.data.noise import add_noise
from unmuddle.recipe.decisions import Row, write_rows
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.train import train, train_epochs

QUICK = TrainConfig(
    data="digits", noise="symmetric:0.2", backbone="tests.helpers.networks:tiny", batch_size=128, lr=1e-2,
    epochs=4, warmup=0.5, parts="supcon,arm,uerm",
)  # fmt: skip
TIMES = {"seconds", "samples_per_second"}


def work(out: Path, resume: bool, dies_at_write: int | None = None) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if dies_at_write is not None:
        writes = 0
        fsync = os.fsync

        def dying(file: int) -> None:
            nonlocal writes
            writes += 1
            if writes == dies_at_write:
                os.truncate(f"/proc/self/fd/{file}", os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(file)

        os.fsync = dying
    train(dataclasses.replace(QUICK, out=str(out)), Console(quiet=True), resume=resume)


def start(out: Path, *arguments: object) -> BaseProcess:
    process = FORKS.Process(target=work, args=(out, *arguments))
    process.start()
    return process


def result(run: Path) -> dict[str, object]:
    """Everything in the folder but what the clock decides."""
    found: dict[str, object] = {}
    for path in sorted(run.iterdir()):
        if path.suffix in (".jsonl", ".json"):
            entries = (
                [json.loads(text) for text in path.read_text().splitlines()]
                if path.suffix == ".jsonl"
                else [json.loads(path.read_text())]
            )
            found[path.name] = [{k: v for k, v in e.items() if k not in TIMES} for e in entries]
        elif path.name == "config.yaml":
            found[path.name] = path.read_text().replace(str(run), "")
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was never stopped, and how many seconds it took."""
    run = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    process = start(run, False)
    process.join()
    assert process.exitcode == 0
    return run, time.monotonic() - began


@pytest.fixture
def whole(ended: tuple[Path, float]) -> dict[str, object]:
    return result(ended[0])


@pytest.mark.parametrize("seed", thinned(range(20), 10))
def test_killed_at_a_random_moment(seed: int, whole, ended, tmp_path: Path) -> None:
    process = start(tmp_path / "run", False)
    time.sleep(random.Random(seed).uniform(0, ended[1]))
    process.kill()
    process.join()
    process = start(tmp_path / "run", (tmp_path / "run" / "config.yaml").exists())
    process.join()
    assert process.exitcode == 0
    assert result(tmp_path / "run") == whole


@pytest.mark.parametrize("write", thinned([1, 2, 6, 7, 9, 10, 11, 16, 26], 5))
def test_killed_with_a_file_half_written(write: int, whole, tmp_path: Path) -> None:
    process = start(tmp_path / "run", False, write)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process = start(tmp_path / "run", (tmp_path / "run" / "config.yaml").exists())
    process.join()
    assert result(tmp_path / "run") == whole


def test_a_run_that_has_ended_is_left_alone(ended, tmp_path: Path, capsys) -> None:
    run = shutil.copytree(ended[0], tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert not (run / "checkpoint.pt").exists()
    train(dataclasses.replace(QUICK, out=str(run)), resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    assert main(["train", "--resume", str(run), "--labels", "labels.csv"]) == 2
    assert "--labels labels.csv: the run has ended" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 0
    assert "finished" in capsys.readouterr().out


def stopped(out: Path) -> Path:
    """A run that has the checkpoint of an epoch and has not ended."""
    process, sizes = start(out, False), set[int]()
    while len(sizes) < 2:  # the first checkpoint is of a training that has not begun
        if (out / "checkpoint.pt").exists():
            sizes.add((out / "checkpoint.pt").stat().st_size)
        time.sleep(0.01)
    process.kill()
    process.join()
    return out


def test_of_an_interrupted_epoch_nothing_stays_and_decisions_do(tmp_path: Path) -> None:
    run, labels = tmp_path / "run", tmp_path / "labels.csv"
    write_rows(labels, [given(0)])
    config = dataclasses.replace(
        QUICK, out=str(run), labels=str(labels), relabel_policy="scn_all",
        relabel_evidence="batches",
    )  # fmt: skip
    training, calls = built(config), itertools.count(1)
    score = training.score

    def interrupted(loader: object):
        if next(calls) == 2:  # whose labels have changed already
            raise KeyboardInterrupt
        return score(loader)

    training.score = interrupted
    train_epochs(training)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["relabeling"]["changed"]) == ("interrupted", 1)
    assert len((run / "ledger.csv").read_text().splitlines()) == 2
    assert len((run / "relabeled.csv").read_text().splitlines()) == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1

    labels.unlink()
    train(config, Console(quiet=True), resume=True)
    assert json.loads((run / "summary.json").read_text())["relabeling"]["changed"] > 1
    assert ",decide\n" in (run / "ledger.csv").read_text()


def test_a_paused_run_goes_on_as_if_it_had_not_been(whole, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    for epoch in (1, 3):
        train(dataclasses.replace(QUICK, out=str(run)), resume=epoch > 1, pause_after=epoch)
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["status"], "test" in summary) == ("paused", False)
        assert len((run / "metrics.jsonl").read_text().splitlines()) == epoch
    assert f"paused; unmuddle train --resume {run} continues it" in capsys.readouterr().out
    train(dataclasses.replace(QUICK, out=str(run)), Console(quiet=True), resume=True)
    assert result(run) == whole


def paused(out: Path, **options: object) -> Path:
    config = dataclasses.replace(
        QUICK, out=str(out), relabel_evidence="batches", relabel_loss="corrected", **options
    )
    return train(config, Console(quiet=True), pause_after=2)


def test_decisions_about_a_paused_run(tmp_path: Path, capsys) -> None:
    run, labels = paused(tmp_path / "run"), tmp_path / "labels.csv"
    write_rows(labels, map(given, range(100, 140)))
    transition = built(RunFolder(run).config(), resume=True).uerm.transition
    untold = shutil.copytree(run, tmp_path / "untold")

    training = built(RunFolder(run).config(), resume=True, labels=str(labels))
    assert training.uerm.ledger.human_verified().nonzero()[:, 0].tolist() == [*range(100, 140)]
    assert not torch.equal(training.uerm.transition, transition)
    training.augment = None  # killed in the first step
    with pytest.raises(TypeError):
        train_epochs(training)
    killed = shutil.copytree(run, tmp_path / "killed")

    for path, given_labels in ((run, str(labels)), (killed, None), (untold, None)):
        config = RunFolder(path).config()
        train(dataclasses.replace(config, out=str(path)), resume=True, labels=given_labels)
    printed = "".join(capsys.readouterr().out.split())
    assert f"{labels}:40decisions" in printed
    assert f"{killed / 'labels.csv'}:40decisions" in printed
    assert (run / "labels.csv").read_bytes() == labels.read_bytes()
    ledger = (run / "ledger.csv").read_text()
    assert ledger.count(",decide\n") == 40
    assert RunFolder(run).config().labels == str(labels)
    assert result(killed)["ledger.csv"] == result(run)["ledger.csv"]
    assert result(killed)["metrics.jsonl"] == result(run)["metrics.jsonl"]
    assert result(untold)["metrics.jsonl"] != result(run)["metrics.jsonl"]


def test_other_validation_labels_score_the_best_epoch_again(tmp_path: Path) -> None:
    run, labels = paused(tmp_path / "run"), tmp_path / "labels.csv"
    config, splits = RunFolder(run).config(), load_data(QUICK.data, seed=QUICK.seed)
    names = [splits.classes[label] for label in splits.val.labels.tolist()]
    write_rows(
        labels,
        [
            Row(i, "val", "", name, splits.classes[int(name) - 1], "accept", splits.val.content(i))
            for i, name in enumerate(names)
        ],
    )
    before = built(config, resume=True)
    after = built(config, resume=True, labels=str(labels))
    assert before.progress.best_accuracy > 0.3 > after.progress.best_accuracy
    assert after.progress.best_epoch == before.progress.best_epoch
    for name, value in before.average.module.state_dict().items():
        assert torch.equal(value, after.average.module.state_dict()[name])
    after.average.module.load_state_dict(after.progress.best)
    assert after.score(after.loaders.val).accuracy == after.progress.best_accuracy


def test_later_decisions_include_the_earlier_ones(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    write_rows(labels, [given(0), given(1)])
    run = paused(tmp_path / "run", labels=str(labels))
    config = RunFolder(run).config()
    write_rows(labels, [given(0), given(2)])
    lacks = r"--labels .*: lacks 1 of the decisions of .*labels.csv, such as .* sample 1 of train"
    with pytest.raises(UsageError, match=lacks):
        built(config, resume=True, labels=str(labels))
    write_rows(labels, map(given, range(3)))
    training = built(config, resume=True, labels=str(labels))
    decided = [e for e in training.uerm.ledger.events() if e.rule == "decide"]
    assert [(e.sample, e.epoch) for e in decided] == [(0, 0), (1, 0), (2, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pause_after": 2}, "expected less than --epochs, 4, and more than the 2 epochs that are"),
        ({"pause_after": 4}, "--pause_after 4: expected less than --epochs, 4"),
        ({"labels": ""}, "--labels "),
    ],
)
def test_wrong_options_of_a_paused_run(options: dict, message: str, tmp_path: Path) -> None:
    run = paused(tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        train(RunFolder(run).config(), Console(quiet=True), resume=True, **options)
    assert RunFolder(run).status() == "paused"


def test_what_was_left_out_is_of_the_last_resumption(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    write_rows(labels, [given(0), given(1)._replace(content="0" * 32)])
    run = paused(tmp_path / "run", labels=str(labels))
    assert "decision, image" in (run / "left_out.csv").read_text()
    write_rows(labels, [given(0), given(1)])
    train(RunFolder(run).config(), Console(quiet=True), resume=True, labels=str(labels))
    assert not (run / "left_out.csv").exists()


def test_the_folder_of_a_stopped_run_may_move_but_not_change(tmp_path: Path, capsys) -> None:
    faces = make_folder(tmp_path / "faces", ("train", "val", "test"))
    run, small = tmp_path / "run", "--backbone=tests.helpers.networks:tiny"
    options = [f"--data=folder:{faces}", small, "--image_size=32", "--epochs=2", "--pause_after=1"]
    assert main(["train", "--quiet", *options, f"--out={run}"]) == 0
    moved = faces.rename(tmp_path / "moved")
    resumed = ["train", "--quiet", "--resume", str(run)]
    image = next((moved / "train").glob("*/*"))
    content = image.read_bytes()
    ImageOps.mirror(Image.open(image)).save(image)
    assert main([*resumed, f"--data=folder:{moved}"]) == 2
    assert "1 images have changed since the run began, such as " in capsys.readouterr().err
    image.write_bytes(content)
    assert main(resumed) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main([*resumed, f"--data=folder:{moved}"]) == 0
    assert RunFolder(run).status() == "finished"


@pytest.mark.parametrize("epochs_done", [0, 2])
def test_interrupted_in_the_middle_of_an_epochs_files(epochs_done: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = dataclasses.replace(
        QUICK, out=str(run), relabel_policy="scn_all", relabel_evidence="batches"
    )
    training, epochs = built(config), itertools.count()
    save = training.checkpoint.save

    def interrupted(*args: object) -> None:
        if next(epochs) == epochs_done + 1:  # the other files of the epoch are there
            raise KeyboardInterrupt
        save(*args)

    training.checkpoint.save = interrupted
    train_epochs(training)
    summary = json.loads((run / "summary.json").read_text())
    assert len((run / "metrics.jsonl").read_text().splitlines()) == epochs_done
    assert "test" not in summary
    if not epochs_done:
        assert summary["relabeling"]["changed"] == 0
        assert len((run / "ledger.csv").read_text().splitlines()) == 1
        return
    changed = {e.split(",")[1] for e in (run / "ledger.csv").read_text().splitlines()[1:]}
    assert 0 < summary["relabeling"]["changed"] <= len(changed)
    entries = [json.loads(e) for e in (run / "metrics.jsonl").read_text().splitlines()]
    assert summary["val_accuracy"] == entries[summary["best_epoch"] - 1]["val_accuracy"]


def test_interrupted_after_the_test_it_was_not_tested(tmp_path: Path) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    training = built(dataclasses.replace(QUICK, epochs=1, out=str(tmp_path / "run")))
    training.run.save_snapshot = interrupted
    train_epochs(training)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert not {"test", "test_last_epoch"} & summary.keys()
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_images_that_were_exchanged_are_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    samples = run / "samples.csv"
    samples.write_text(samples.read_text().replace("\n0,,", "\n0,another.png,"))
    with pytest.raises(UsageError, match=r"--resume .*: was trained on other images: 1 of its"):
        train(dataclasses.replace(QUICK, out=str(run)), resume=True)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    for each in (one, two):
        each.check_free()
    one.claim()
    with pytest.raises(UsageError, match="cannot be created: .*File exists"):
        two.claim()
    three = RunFolder(tmp_path / "run")
    three.check_free()
    three.claim()  # it is empty


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_summary_is_named(text: str, tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    (run / "summary.json").write_text(text)
    with pytest.raises(UsageError, match="summary.json: is not readable"):
        train(dataclasses.replace(QUICK, out=str(run)), resume=True)


def given(sample: int) -> Row:
    """Decision for another label than the one that a sample of QUICK is given."""
    splits = load_data(QUICK.data, seed=QUICK.seed)
    add_noise(splits.train, splits.classes, QUICK.noise, QUICK.seed)
    label = int(splits.train.labels[sample])
    names = (splits.classes[label], splits.classes[label - 1])
    return Row(sample, "train", "", *names, "accept", splits.train.content(sample))


def test_a_damaged_checkpoint_and_other_labels_are_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    config = dataclasses.replace(QUICK, out=str(run))
    with pytest.raises(UsageError, match=r"checkpoint.pt: cannot be resumed from: .*labels"):
        train(dataclasses.replace(config, noise="symmetric:0.3"), resume=True)
    checkpoint = run / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UsageError, match="checkpoint.pt: cannot be resumed from"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "--resume nowhere: is not there"),
        (["--resume", "{run}", "--epochs", "9"], "--resume: goes on with the options of the run"),
        (["--pause-after", "0"], "--pause_after 0: expected less than --epochs, 15, and more than"),
    ],
)
def test_wrong_resumes(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    arguments = [argument.format(run=tmp_path) for argument in arguments]
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_ends_with_one_line_and_keeps_the_last_checkpoint(
    whole, tmp_path: Path
) -> None:
    run = stopped(tmp_path / "run")
    checkpoint = (run / "checkpoint.pt").read_bytes()

    log = tmp_path / "log"
    process = unmuddle(["train", "--quiet", "--resume", str(run)], log)
    limit = len(checkpoint) // 2
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    process.join()
    assert process.exitcode == 1, log.read_text()
    said = log.read_text().splitlines()[-1]
    assert said.startswith(f"unmuddle train: error: {run}/checkpoint.pt: cannot be written")
    assert "Traceback" not in log.read_text()
    assert (run / "checkpoint.pt").read_bytes() == checkpoint
    assert not list(run.glob(".partial*"))
    process = start(run, True)
    process.join()
    assert result(run) == whole


def test_a_run_that_goes_on_has_neither_summary_nor_report(tmp_path: Path) -> None:
    for name in ("summary.json", "report.html", "config.yaml"):
        (tmp_path / name).write_text("{}")
    RunFolder(tmp_path).rewind(0)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "metrics.jsonl"}
