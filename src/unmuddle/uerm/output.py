"""`UERMOutput`: what `UERM` gives for a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.distributed import is_distributed
from unmuddle.uerm.processes import over_processes


class UERMOutput(NamedTuple):
    """Targets and weights to train a batch of N samples on.

    Attributes:
        labels: `(N,)` labels as they stand.
        targets: `(N, K)` one-hot labels to train on.
        weight: `(N,)` in [0, 1], for `weighted_mean`; 1 during warm-up and for samples never seen
            before.
        uncertainty: `(N,)` of the labels, in [0, 1], as the last epoch left it; 0 where somebody
            had chosen the label, and for samples never seen.
        regularizer: scalar to add to the loss; trains the attention head only.
    """

    labels: Tensor
    targets: Tensor
    weight: Tensor
    uncertainty: Tensor
    regularizer: Tensor

    def weighted_mean(self, losses: Tensor, *, gather: bool = False) -> Tensor:
        """`sum_i w_i L_i / sum_i w_i`; 0 with zero gradient where every weight is 0.

        A batch may hold quarantined samples alone, whose weights are 0: dividing by `weight.sum()`
        would then make the loss, and with it every weight of the network, NaN.

        Args:
            losses: `(N,)` of the samples, such as `cross_entropy(..., reduction="none")`.
            gather: the mean over the batches of all processes of `torch.distributed`. Every process
                gets its value; averaged over the processes, as `DistributedDataParallel` does,
                gradients are those of one process holding all of these samples. A mean of each
                process's own mean would differ where their weights do.

        Returns:
            Scalar.

        Raises:
            ValueError: `losses` has another shape.

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
        counted = losses.masked_fill(self.weight == 0, 0)  # an infinite loss of weight 0 too
        total, weight = (self.weight * counted).sum(), self.weight.sum()
        if not (gather and is_distributed()):
            return total / weight.clamp(min=tiny)
        sums = over_processes(torch.stack([total.detach(), weight.to(total)]))
        weight = sums[1].clamp(min=tiny)
        own = total * torch.distributed.get_world_size() / weight
        return sums[0] / weight + (own - own.detach())  # the value of all, the gradient of ours
