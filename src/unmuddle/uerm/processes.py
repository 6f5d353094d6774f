"""Communication between the processes of a distributed run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unmuddle.distributed import is_distributed


def over_processes(sums: Tensor) -> Tensor:
    """Return the sum of `sums` over all processes, as a new tensor."""
    sums = sums.clone()
    if is_distributed():
        torch.distributed.all_reduce(sums)
    return sums


def from_first_process(decide: Callable[[], tuple[Any, ...]], device: torch.device) -> Any:
    """Call `decide` in the first process, and return its result in all processes.

    Raises:
        RuntimeError: `decide` failed in the first of several processes. All processes raise it.
    """
    if not is_distributed():
        return decide()
    distributed = torch.distributed
    box: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            box = [[v.cpu() if isinstance(v, Tensor) else v for v in decide()]]
        except Exception as error:  # a user's policy can fail in any way; no process may hang
            box = [f"{type(error).__name__}: {error}"]
    distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], str):
        raise RuntimeError(f"relabeling failed in the first process: {box[0]}")
    return [v.to(device) if isinstance(v, Tensor) else v for v in box[0]]
