"""Training in several processes, equivalent to training in one on the same batches."""

from typing import Literal, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from unmuddle.distributed import SumOverProcesses
from unmuddle.recipe.errors import UsageError


def check_shares(batch_size: int, samples: int, processes: int) -> None:
    """Raise a UsageError if the batches cannot be split evenly over the processes."""
    if batch_size % processes:
        raise UsageError(
            f"--batch_size: expected a multiple of the {processes} processes, got {batch_size}"
        )
    if processes > 1 and samples < batch_size:
        raise UsageError(
            f"--batch_size: expected at most the {samples} training samples, got {batch_size}"
        )


def reduced(values: Tensor, accelerator: Accelerator, how: Literal["sum", "mean"]) -> Tensor:
    """Return the sum or mean over the processes."""
    return cast(Tensor, accelerator.reduce(values, how))


def average_gradients(module: nn.Module, accelerator: Accelerator) -> None:
    """Average the gradients of a module that `DistributedDataParallel` does not wrap."""
    if accelerator.sync_gradients:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = reduced(parameter.grad, accelerator, "mean")


def synchronize_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch normalisation synchronised over all processes.

    On CPUs, which `nn.SyncBatchNorm` does not support, only plain `nn.BatchNorm1d` and
    `nn.BatchNorm2d` are synchronised.
    """
    if device.type != "cpu":
        return convert_sync_batchnorm(model)
    for name, child in model.named_children():
        is_plain = type(child) in (nn.BatchNorm1d, nn.BatchNorm2d)
        if is_plain and child.affine and child.track_running_stats:
            child.__class__ = JoinedBatchNorm
        else:
            setattr(model, name, synchronize_norms(child, device))
    return model


class JoinedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes, on any device."""

    process_group = None  # the default one, as in nn.SyncBatchNorm

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C)` or `(N, C, H, W)`."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        x = input.to(self.weight.dtype)  # compute the statistics of 16-bit features in 32 bits
        others, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        count = SumOverProcesses.apply(x.new_tensor(x.numel() / x.shape[1]), None)
        mean = SumOverProcesses.apply(x.sum(others), None) / count
        centred = x - mean.view(shape)
        variance = SumOverProcesses.apply(centred.square().sum(others), None) / count
        with torch.no_grad():
            cast(Tensor, self.num_batches_tracked).add_(1)
            for running, found in (
                (self.running_mean, mean),
                (self.running_var, variance * count / (count - 1).clamp(min=1)),
            ):
                cast(Tensor, running).lerp_(found, cast(float, self.momentum))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""
