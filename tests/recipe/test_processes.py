"""Several processes train as one does on the same batches; none outlives the others."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from tests.helpers import ROOT
from tests.helpers.processes import run, unmuddle
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.processes import average_gradients, check_shares, synchronize_norms
from unmuddle.recipe.train import train

CPU = torch.device("cpu")
TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2 -m unmuddle"
ACCELERATE = (
    "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port {port} -m unmuddle"
)
OPTIONS = (
    "--data digits --backbone tests.helpers.networks:double --batch_size 64 --lr 1e-2 --noise symmetric:0.2 "
    "--parts supcon,arm,uerm"
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextmanager
def launched(module: str, options: str, out: Path) -> Generator[subprocess.Popen]:
    """`unmuddle train`; whatever happens, none of its processes is left at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        module = module.format(port=free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", *module.split(), "train", *options.split(), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def output_of(process: subprocess.Popen, seconds: float = 120) -> str:
    return process.communicate(timeout=seconds)[0]


def children_once_trained(pid: int, folder: Path) -> list[int]:
    """Processes of a training, when its first epoch is done."""
    deadline = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def metrics(run: Path) -> list[dict]:
    clock = {"seconds", "samples_per_second"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def events(run: Path) -> list[tuple[str, ...]]:
    with (run / "ledger.csv").open() as file:
        return [(e["sample"], e["epoch"], e["old"], e["new"]) for e in csv.DictReader(file)]


def agree(one: Path, two: Path) -> None:
    pairs = [*zip(metrics(one), metrics(two), strict=True)]
    assert len(pairs) >= 3
    for alone, shared in pairs:
        assert shared == pytest.approx(alone, abs=1e-6)
    assert events(two) == events(one)
    tests = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert tests[0]["test"]["confusion"] == tests[1]["test"]["confusion"]


def _trained(_sizes: tuple[int, ...], config: TrainConfig) -> None:
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    train(config, Console(quiet=True))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    for name, sizes in (("one", (1,)), ("two", (1, 1))):
        config = TrainConfig(
            data="digits", noise="symmetric:0.2", backbone="tests.helpers.networks:double",
            parts="supcon,arm,uerm", batch_size=64, lr=1e-2, epochs=3, out=str(tmp_path / name),
        )  # fmt: skip
        run(_trained, sizes, config)
    agree(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        (ACCELERATE, "--accumulate 3 --workers 1 --sampler balanced"),
        (TORCHRUN, "--warmup 0.3 --relabel_evidence batches --relabel_loss corrected --parts uerm"),
    ],
)
def test_launched_processes_train_as_one(launcher: str, options: str, tmp_path: Path) -> None:
    for module, out in (("unmuddle", "one"), (launcher, "two")):
        with launched(module, f"{OPTIONS} --epochs 3 {options}", tmp_path / out) as process:
            output = output_of(process)
        assert process.returncode == 0, output
    agree(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with launched(TORCHRUN, f"{OPTIONS} --epochs 5000", run) as process:
        children = children_once_trained(process.pid, run)
        assert len(children) == 2
        os.kill(children[1], signal.SIGKILL)
        output = output_of(process, seconds=60)
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in output
    assert "another process of this training has ended" in output or "interrupted" in output
    assert (run / "checkpoint.pt").exists()
    assert output.count("epoch 1 of") == 1, "one process alone speaks"


def test_a_killed_loader_ends_the_training(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    options = f"{OPTIONS} --epochs 5000 --workers 1 --out {folder}"
    process = unmuddle(["train", *options.split()], log)
    try:
        for child in children_once_trained(process.pid, folder):
            os.kill(child, signal.SIGKILL)
        process.join(60)
    finally:
        process.kill()
    output = log.read_text()
    assert process.exitcode == 1
    assert "unmuddle train: error: a process that loads images has ended" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("batch_size", "samples", "message"),
    [
        (63, 1077, "--batch_size: expected a multiple of the 2 processes"),
        (64, 20, "--batch_size: expected at most the 20 training"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(
    batch_size: int, samples: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_shares(batch_size, samples, processes=2)
    check_shares(batch_size, samples, processes=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data digits --batch_size 63", "--batch_size: expected a multiple of the 2 processes"),
        ("--data synthetic:20 --batch_size 64", "--batch_size: expected at most the 20 training"),
    ],
)
def test_a_launch_with_batches_that_cannot_be_shared_leaves_nothing(
    options: str, message: str, tmp_path: Path
) -> None:
    options += " --backbone tests.helpers.networks:double"
    with launched(TORCHRUN, options, tmp_path / "run") as process:
        assert message in output_of(process)
    assert process.returncode != 0
    assert not (tmp_path / "run").exists()


def _averaged_once_they_are_stepped_on(sizes: tuple[int, ...]) -> None:
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    head = torch.nn.Linear(3, 1)
    for is_step in (False, True):
        with accelerator.accumulate():
            head(torch.full((1, 3), dist.get_rank() + 1.0)).sum().backward()
            average_gradients(head, accelerator)
        mean = 2 * sum(rank + 1 for rank in range(len(sizes))) / len(sizes)
        alone = dist.get_rank() + 1.0
        expected = torch.full((1, 3), mean if is_step else alone)
        torch.testing.assert_close(head.weight.grad, expected)


def test_gradients_of_a_module_outside_ddp_are_averaged() -> None:
    run(_averaged_once_they_are_stepped_on, (1, 1))


def _normalised_in_16_bits(sizes: tuple[int, ...]) -> None:
    whole = 3 * torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    whole, rank = whole.bfloat16(), dist.get_rank()
    alone, joined = nn.BatchNorm2d(2), synchronize_norms(nn.Sequential(nn.BatchNorm2d(2)), CPU)
    found, expected = joined(whole[4 * rank :][:4]), alone(whole)[4 * rank :][:4]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(joined[0].running_mean, alone.running_mean)
    torch.testing.assert_close(joined[0].running_var, alone.running_var)


def test_joined_normalisation_of_16_bit_features_is_that_of_one_process() -> None:
    run(_normalised_in_16_bits, (4, 4))
