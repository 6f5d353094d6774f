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
        given: `(N,)` original labels.
        transition: `(K, K)` matrix `P(label y | class k)` of the original labels.
    """

    labels: Tensor
    targets: Tensor
    weight: Tensor
    uncertainty: Tensor
    regularizer: Tensor
    given: Tensor
    transition: Tensor

    def corrected_cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy `(N,)` of the original labels, corrected for their noise.

        `L_i = -log sum_k T[k, y_i] softmax(logits_i)[k]`, where T is `transition`

        The network learns the distribution of the true class, and T turns it into that of the
        label. No sample is left out: the gradient replaces each label by its posterior
        `P(k | y_i)` under the current prediction. Where `uncertainty` is 0, the loss is the plain
        cross-entropy of the current label: during the warm-up, for labels set by hand (from the
        next `end_epoch` on), and for samples never seen. Take the plain mean of the losses, because
        `weight` would count the noise twice.

        Args:
            logits: `(N, K)` logits of the classifier.

        Raises:
            ValueError: `logits` is not a floating-point tensor of this shape.

        Examples:
            >>> from unmuddle import UERM
            >>> uerm = UERM(torch.tensor([0, 1]), num_classes=2)
            >>> logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]])  # the second contradicts its label
            >>> out = uerm(torch.randn(2, 8), logits, torch.arange(2))
            >>> noise = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
            >>> out = out._replace(uncertainty=torch.full((2,), 0.1), transition=noise)
            >>> out.corrected_cross_entropy(logits)  # at most -log 0.2; without correction 9
            tensor([0.2232, 1.6091])

        References:
            Patrini et al., Making Deep Neural Networks Robust to Label Noise: A Loss Correction
            Approach, 2017, arXiv 1609.03683 ("forward correction").
        """
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"logits: expected a floating-point tensor, got {got}")
        if logits.shape != self.targets.shape:
            raise ValueError(
                f"logits: expected shape (N, K) = {tuple(self.targets.shape)}, "
                f"got {tuple(logits.shape)}"
            )
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
        is_certain = (self.uncertainty == 0)[:, None]
        likelihood = torch.where(is_certain, self.targets, self.transition.T[self.given])
        return -(log_p + likelihood.log()).logsumexp(1)

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
