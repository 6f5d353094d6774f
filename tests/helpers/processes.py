"""Run a test in several real processes of `torch.distributed`, or a command in one."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from unmuddle.cli import main

# Forks a process that has imported what takes seconds, and has done nothing else.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "pytest", "sklearn.datasets", "unmuddle.cli.train"])


def unmuddle(arguments: list[str], log: Path) -> BaseProcess:
    """Start `unmuddle` in the current folder, with a file for what it prints."""
    process = FORKS.Process(target=_unmuddle, args=(Path.cwd(), arguments, log))
    process.start()
    return process


def _unmuddle(folder: Path, arguments: list[str], log: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    # A shell lets what it starts in the background ignore this signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(main(arguments))


def run(test: Callable[..., None], sizes: tuple[int, ...], *arguments: object) -> None:
    """Call `test(sizes, *arguments)` in one process for each size."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(
        _process, (test, sizes, port, arguments), nprocs=len(sizes), start_method="forkserver"
    )


def _process(rank: int, test: Callable[..., None], sizes: tuple, port: int, arguments) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=len(sizes))
    test(sizes, *arguments)
    if dist.is_initialized():  # the recipe ends its processes itself
        dist.barrier()
    # Left at once: gloo's threads may let go of Python objects while the interpreter is torn down,
    # which aborts the process now and then, and some versions of torch wait for them forever.
    sys.stdout.flush()
    os._exit(0)
