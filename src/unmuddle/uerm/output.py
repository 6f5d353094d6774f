"""`UERMOutput`: the output of `UERM` for a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.distributed import is_distributed
from unmuddle.uerm.processes import over_processes


class UERMOutput(NamedTuple):
    """Targets and weights for training on a batch of N samples.

    Attributes:
        labels: `(N,)` current labels.
        targets: `(N, K)` one-hot labels to train on.
        weight: `(N,)` in [0, 1], for `weighted_mean`; 1 during warm-up and for samples never seen
            before.
        uncertainty: `(N,)` uncertainty of the labels in [0, 1], as of the end of the last epoch; 0
            for labels set by hand and for samples never seen.
        regularizer: scalar to add to the loss; trains the attention head only.
    """

    labels: Tensor
    targets: Tensor
    weight: Tensor
    uncertainty: Tensor
    regularizer: Tensor

    def weighted_mean(self, losses: Tensor, *, gather: bool = False) -> Tensor:
        """Return `sum_i w_i L_i / sum_i w_i`; 0 with zero gradient if all weights are 0.

        A batch may contain only quarantined samples, whose weights are 0. Dividing by
        `weight.sum()` would then make the loss NaN, and with it all parameters of the network.

        Args:
            losses: `(N,)` losses of the samples, such as `cross_entropy(..., reduction="none")`.
            gather: take the mean over the batches of all `torch.distributed` processes. Every
                process returns this mean. Averaged over the processes, as by
                `DistributedDataParallel`, the gradients equal those of one process with all
                samples. The average of the processes' own means would differ if the sums of their
                weights differ.

        Returns:
            Scalar.

        Raises:
            ValueError: `losses` has a different shape.

        Examples:
            >>> from unmuddle import UERM
            >>> uerm = UERM(torch.tensor([0, 1, 1]), num_classes=2)
            >>> out = uerm(torch.randn(3, 8), torch.randn(3, 2), torch.arange(3))
            >>> out._replace(weight=torch.tensor([1.0, 0.5, 0.0])).weighted_mean(torch.ones(3))
            tensor(1.)
        """
        if losses.shape != self.weight.shape:
            raise ValueError(
                f"losses: expected shape (N,) = {tuple(self.weight.shape)}, one loss a sample "
                f"(reduction='none'), got {tuple(losses.shape)}"
            )
        tiny = torch.finfo(self.weight.dtype).tiny
        counted = losses.masked_fill(self.weight == 0, 0)  # even an infinite loss
        total, weight = (self.weight * counted).sum(), self.weight.sum()
        if not (gather and is_distributed()):
            return total / weight.clamp(min=tiny)
        sums = over_processes(torch.stack([total.detach(), weight.to(total)]))
        weight = sums[1].clamp(min=tiny)
        own = total * torch.distributed.get_world_size() / weight
        return sums[0] / weight + (own - own.detach())  # global value, local gradient
