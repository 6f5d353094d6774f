"""Laws for losses that gather the batches of all processes."""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, law
from unmuddle.testing.loss import Loss, NotApplicableError

STARTING = 120.0  # seconds that a process may take to import torch and the loss
SECONDS = 5.0  # after which running processes are considered deadlocked
WORKER = "from unmuddle.testing.laws.processes import work; work()"
DIM = 3
MISMATCH = "their collective calls do not match, or differ in size"


def _shown(ends: str) -> str:
    """Return a script for `torchrun`, given the boundaries of the shares of two processes."""
    return (
        "# torchrun --nproc-per-node 2 FILE; --nproc-per-node 1 prints the expected result\n"
        "torch.distributed.init_process_group('gloo')\n"
        "rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()\n"
        f"ends = {ends} if world > 1 else [0, 8]\n"
        "share = slice(ends[rank], ends[rank + 1])\n"
        "torch.manual_seed(0)\n"
        "x, y = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2\n"
        "weight = torch.eye(3, dtype=torch.float64, requires_grad=True)\n"
        "loss(x[share] @ weight, y[share]).backward()\n"
        "torch.distributed.all_reduce(weight.grad)\n"
        "print(weight.grad / world)"
    )


class ProcessError(RuntimeError):
    """Raised if a process raised an error, or did not finish."""


@law(
    "processes",
    change="an entry of the gradient of a matrix that multiplies all rows",
    show=_shown("[0, 4, 8]"),
)
def equal_shares(loss: Loss, batch: Batch) -> Finding:
    """The mean gradient of processes with equal shares of a batch is that of one process.

    `DistributedDataParallel` averages gradients over processes. For a loss that gathers the rows of
    all processes, the law detects a gather that does not propagate the gradient, or that lacks a
    factor for the number of processes. The gradient is taken with respect to a matrix by which all
    rows are multiplied.
    """
    return _agrees(loss, [4] * loss.processes)


@law(
    "processes",
    change="an entry of the gradient of a matrix that multiplies all rows",
    show=_shown("[0, 3, 8]"),
)
def unequal_shares(loss: Loss, batch: Batch) -> Finding:
    """The mean gradient of processes with unequal shares of a batch is that of one process."""
    return _agrees(loss, [3 + 2 * rank for rank in range(loss.processes)])


@law(
    "processes",
    change="an entry of the gradient of a matrix that multiplies all rows",
    show=_shown("[0, 8, 8]"),
)
def empty_share(loss: Loss, batch: Batch) -> Finding:
    """The mean gradient of processes, one of them without samples, is that of one process."""
    return _agrees(loss, [8] * (loss.processes - 1) + [0])


def _agrees(loss: Loss, shares: list[int]) -> Finding:
    """Compare the gradients once per loss, because starting processes takes seconds."""
    if loss.processes < 2:
        raise NotApplicableError
    key = ("processes", *shares)
    if key not in loss.measurements:
        found: Any
        try:
            found = _gradients(loss, shares)
        except ProcessError as error:
            found = error
        loss.measurements[key] = found
    known: Any = loss.measurements[key]
    if isinstance(known, ProcessError):
        raise ProcessError(*known.args)
    whole, shared = known
    return Finding(shared, "==", whole, 1e-9 * (1 + float(whole.abs().max())))


def _gradients(loss: Loss, shares: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the gradient of one process with the whole batch, and the mean over all processes.

    The gradient is taken with respect to a matrix by which all rows are multiplied. The processes
    are not forked, because autograd cannot be used in a fork of a process that has used it.
    """
    import cloudpickle  # also pickles functions defined in a script or in a function

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(len(shares))]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for rank, file in enumerate(files):
                job = (loss.like(loss.fn), [*shares], rank, folder)
                file.with_suffix(".job").write_bytes(cloudpickle.dumps(job))
                command = [sys.executable, "-c", WORKER, str(file)]
                workers.append(
                    subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
                )
            told = _collect(workers, files)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    whole = told[0][0]
    shared = torch.tensor([found[1] for found in told], dtype=torch.float64)
    return torch.tensor(whole, dtype=torch.float64), shared.mean(0)


def _collect(workers: "Sequence[subprocess.Popen[bytes]]", files: Sequence[Path]) -> list[Any]:
    """Wait for the result that each process writes to its file.

    Raises:
        ProcessError: a process failed, crashed, or is deadlocked.
    """
    told: dict[Path, Any] = {}
    end = time.monotonic() + STARTING
    while len(told) < len(files):
        has_ended = [worker.poll() is not None for worker in workers]
        for file, ended in zip(files, has_ended, strict=True):
            if file in told:
                continue
            if file.exists():
                told[file] = pickle.loads(file.read_bytes())
            elif ended:
                raise ProcessError(f"a process crashed: {MISMATCH}")
            if isinstance(told.get(file), str):
                raise ProcessError(told[file])
        if all(file.with_suffix(".started").exists() for file in files):
            end = min(end, time.monotonic() + SECONDS)
        if time.monotonic() > end:
            raise ProcessError(f"processes wait for one another: {MISMATCH}")
        time.sleep(0.01)
    return [told[file] for file in files]


def work() -> None:
    """Run in each process: read the job from a file, and write the gradients to another."""
    file = Path(sys.argv[-1])
    try:
        loss, shares, rank, folder = pickle.loads(file.with_suffix(".job").read_bytes())
        # The process group does not exist yet, so a loss that gathers uses only its own rows.
        whole = None if rank else _gradient(loss, sum(shares), slice(None))
        place = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=len(shares))
        file.with_suffix(".started").touch()
        start = sum(shares[:rank])
        told: Any = (whole, _gradient(loss, sum(shares), slice(start, start + shares[rank])))
    except Exception as error:  # any exception raised by the loss
        first = str(error).partition("\n")[0]
        told = f"process {file.name}: {type(error).__name__}: {first}"
    partial = file.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(told))
    partial.rename(file)
    with suppress(Exception):
        dist.barrier()  # no process exits while others still need it


def _gradient(loss: Loss, size: int, share: slice) -> list[list[float]]:
    batch = Batch(size, DIM, 2, seed=7)
    weight = torch.eye(DIM, dtype=torch.float64, requires_grad=True)
    value = loss.value(batch.features[share] @ weight, batch.labels[share])
    if value.requires_grad:
        value.backward()
    return torch.zeros_like(weight).tolist() if weight.grad is None else weight.grad.tolist()
