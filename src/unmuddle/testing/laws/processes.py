"""Laws of losses that gather the batches of all processes."""

import faulthandler
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, law
from unmuddle.testing.loss import Loss, NotApplicable

SECONDS = 5.0  # after which processes wait for one another in vain
DIM = 3
MISMATCH = "their collectives do not match, or differ in size"


def _shown(ends: str) -> str:
    """Return a script for `torchrun`, given where the shares of two processes end."""
    return (
        "# torchrun --nproc-per-node 2 FILE; --nproc-per-node 1 prints what is expected\n"
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
    """A process raised an error, or did not come back."""


@law(
    "processes",
    change="an entry of the gradient of a matrix that multiplies all rows",
    show=_shown("[0, 4, 8]"),
)
def equal_shares(loss: Loss, batch: Batch) -> Finding:
    """With equal shares of a batch, the mean gradient of processes is that of one process.

    `DistributedDataParallel` averages gradients over processes. Where a loss gathers the rows of
    all processes, a gather without a gradient, or without a factor for the number of processes,
    shows here. The gradient is that of a matrix that all rows are multiplied by.
    """
    return _agrees(loss, [4] * loss.processes)


@law(
    "processes",
    change="an entry of the gradient of a matrix that multiplies all rows",
    show=_shown("[0, 3, 8]"),
)
def unequal_shares(loss: Loss, batch: Batch) -> Finding:
    """With unequal shares of a batch, the mean gradient of processes is that of one process."""
    return _agrees(loss, [3 + 2 * rank for rank in range(loss.processes)])


@law(
    "processes",
    change="an entry of the gradient of a matrix that multiplies all rows",
    show=_shown("[0, 8, 8]"),
)
def empty_share(loss: Loss, batch: Batch) -> Finding:
    """With an empty share, the mean gradient of processes is that of one process."""
    return _agrees(loss, [8] * (loss.processes - 1) + [0])


def _agrees(loss: Loss, shares: list[int]) -> Finding:
    """Compare once a loss, whatever the batch: starting processes takes time."""
    if loss.processes < 2:
        raise NotApplicable
    key = ("processes", *shares)
    if key not in loss.measurements:
        found: Any
        try:
            found = _of_one_process(loss, sum(shares)), _mean_gradient(loss, shares)
        except ProcessError as error:
            found = error
        loss.measurements[key] = found
    known: Any = loss.measurements[key]
    if isinstance(known, ProcessError):
        raise ProcessError(*known.args)
    whole, shared = known
    return Finding(shared, "==", whole, 1e-9 * (1 + float(whole.abs().max())))


def _of_one_process(loss: Loss, size: int) -> Tensor:
    """Return the gradient of the whole batch, outside of a group of processes if that works."""
    try:
        return _mean_gradient(loss, [size], group=False)
    except ProcessError:
        return _mean_gradient(loss, [size])


def _mean_gradient(loss: Loss, shares: Sequence[int], *, group: bool = True) -> Tensor:
    """Return the mean over processes of the gradient of a matrix that rows are multiplied by."""
    context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        readers: list[Connection] = []
        workers: list[Any] = []
        for rank in range(len(shares)):
            reader, writer = context.Pipe(duplex=False)
            store = Path(folder, "store") if group else None
            arguments = (loss.copy(), shares, rank, store, writer)
            workers.append(context.Process(target=_work, args=arguments, daemon=True))
            readers.append(reader)
            with warnings.catch_warnings():  # the children do not use the parent's threads
                warnings.simplefilter("ignore", DeprecationWarning)
                workers[-1].start()
            writer.close()
        try:
            gradients = _collect(readers)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
    return torch.stack(gradients).mean(0)


def _collect(readers: list[Connection]) -> list[Tensor]:
    gradients: list[Tensor] = []
    end, waiting = time.monotonic() + SECONDS, [*readers]
    while waiting:
        ready = wait(waiting, max(0.0, end - time.monotonic()))
        if not ready:
            raise ProcessError(
                "processes wait for one another: their collectives do not match, or differ in size"
            )
        for reader in ready:
            assert isinstance(reader, Connection)
            waiting.remove(reader)
            try:
                found = reader.recv()
            except EOFError as error:
                raise ProcessError(
                    "a process crashed: their collectives do not match, or differ in size"
                ) from error
            if isinstance(found, str):
                raise ProcessError(found)
            gradients.append(torch.tensor(found, dtype=torch.float64))
    return gradients


def _work(
    loss: Loss, shares: Sequence[int], rank: int, store: Path | None, writer: Connection
) -> None:
    torch.set_num_threads(1)  # threads of the parent are not there
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # gloo prints what is told in one line
    with suppress(Exception):
        dist.destroy_process_group()  # the parent's
    try:
        if store is not None:
            place = f"file://{store}"
            dist.init_process_group("gloo", init_method=place, rank=rank, world_size=len(shares))
        many = Batch(sum(shares), DIM, 2, seed=7)
        share = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        weight = torch.eye(DIM, dtype=torch.float64, requires_grad=True)
        value = loss.value(many.features[share] @ weight, many.labels[share])
        if value.requires_grad:
            value.backward()
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        writer.send(gradient.tolist())
        if store is not None:
            dist.barrier()  # nobody leaves while others need it
    except Exception as error:  # whatever a loss raises
        first = str(error).partition("\n")[0]
        writer.send(f"process {rank}: {type(error).__name__}: {first}")
