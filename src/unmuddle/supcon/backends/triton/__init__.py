"""Backend of CUDA kernels in two pipelines, of which `pipeline_of` chooses one.

`large` handles large batches in half precision with the default options, and computes each pair
once. `pairs` handles all other problems.
"""

from types import ModuleType

import torch
from torch import Tensor

from unmuddle.supcon.backends.triton import large, pairs, rows
from unmuddle.supcon.positives import Classes
from unmuddle.supcon.problem import MAX_KERNEL_DIM, Losses, Problem, Residuals

# Range of N for which half precision uses `large`, whose memory grows as N² / 64 bytes.
LARGE, LARGEST = 8192, 2**17


def pipeline_of(problem: Problem) -> ModuleType:
    """Return the pipeline for a problem, without reading values from the device."""
    options, positives = problem.options, problem.positives
    is_large = (
        isinstance(positives, Classes)
        and options.is_bounded
        and problem.rows == slice(0, len(positives.labels))
        and options.dtype == torch.float32
        and options.product_dtype != torch.float32
        and LARGE <= options.anchors <= LARGEST
    )
    return large if is_large else pairs


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of the anchors of this process."""
    if not (x.is_cuda or rows.IS_INTERPRETED):
        raise ValueError(f"impl: 'triton' needs CUDA tensors, got {x.device}")
    if x.shape[1] > MAX_KERNEL_DIM:
        raise ValueError(f"impl: 'triton' takes D <= {MAX_KERNEL_DIM}, got D = {x.shape[1]}")
    return pipeline_of(problem).forward(x, problem)


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `sum_i grad_i L_i` with respect to x and, if needed, `1 / τ`."""
    return pipeline_of(problem).backward(x, problem, residuals, grad)


def new_residuals(x: Tensor, problem: Problem) -> Residuals:
    """Return uninitialised residuals with the shapes that `forward` returns."""
    return pipeline_of(problem).new_residuals(x, problem)
