"""Losses that gather the rows of all processes, right and wrong."""

import torch
import torch.distributed as dist

from unmuddle import supcon_loss

FAULTS = {
    "own_rows_live": "the rows of others are gathered without a gradient, and nothing makes up",
    "detached_gather": "all rows are gathered without a gradient",
    "without_gather": "every process contrasts with its own rows alone",
    "scaled_twice": "the gradient is multiplied by the number of processes, which it has already",
    "local_anchors": "own anchors against all rows, which get no gradient as negatives",
    "mean_of_own_samples": "the mean over the samples of each process",
    "busy_processes": "the factor is the number of processes that have samples",
}


def processes():
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x):
    """Rows of all processes, which hold equally many, without a gradient."""
    if processes() == 1:
        return [x.detach()]
    parts = [torch.zeros_like(x) for _ in range(processes())]
    dist.all_gather(parts, x.detach().contiguous())
    return parts


def loss_of(x, y):
    return supcon_loss(x, y, temperature=0.1)


# Right: the gradient averaged over processes is that of one process.


def gathered(x, y):
    return supcon_loss(x, y, temperature=0.1, gather=True)


def gathered_inside(x, y):
    return supcon_loss(x, y, temperature=0.5, gather=True, positives="in")


def total(x):
    count = torch.tensor(float(len(x)), dtype=torch.float64)
    if processes() > 1:
        dist.all_reduce(count)
    return count


def mean_of_all_samples(x, y):
    """Each process takes its share of the global mean, times the number of processes."""
    return processes() * x.square().sum() / total(x)


# Wrong.


def own_rows_live(x, y):
    parts = gather(x)
    parts[dist.get_rank() if processes() > 1 else 0] = x
    return loss_of(torch.cat(parts), torch.cat(gather(y)))


def detached_gather(x, y):
    if processes() == 1:
        return loss_of(x, y)
    return loss_of(torch.cat(gather(x)), torch.cat(gather(y))) + 0 * x.sum()


def without_gather(x, y):
    return loss_of(x, y)


def scaled_twice(x, y):
    return processes() * gathered(x, y)


def local_anchors(x, y):
    keys, key_labels = torch.cat(gather(x)), torch.cat(gather(y))
    if processes() == 1:
        keys, key_labels = x, y
    return supcon_loss(x, y, keys=keys, key_labels=key_labels, temperature=0.1)


def mean_of_own_samples(x, y):
    return x.square().sum() / max(len(x), 1)


def busy_processes(x, y):
    busy = torch.tensor(float(len(x) > 0), dtype=torch.float64)
    if processes() > 1:
        dist.all_reduce(busy)
    return busy * x.square().sum() / total(x)
