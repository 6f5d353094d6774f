"""Run a test in several real processes of `torch.distributed`."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Forks a process that has imported what takes seconds, and has done nothing else.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch._dynamo", "pytest", "sklearn.datasets", "unmuddle.cli", "unmuddle.recipe.train"]
)


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
    dist.barrier()
    # Left at once: gloo's threads may let go of Python objects while the interpreter is torn down,
    # which aborts the process now and then, and some versions of torch wait for them forever.
    sys.stdout.flush()
    os._exit(0)
