"""Differentiable loss of a contrast set: set up the problem, call a backend, and reduce.

The custom operators in `operators` do the same for backends that `torch.compile` cannot trace.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from unmuddle.supcon.backends import dense, reference, tiled
from unmuddle.supcon.distributed import Shard
from unmuddle.supcon.positives import find_positives
from unmuddle.supcon.problem import ContrastSet, Losses, Options, Problem, Reduction, Residuals


class Backend(Protocol):
    """Interface of a backend. `reference` has no `backward`, since autograd differentiates it."""

    def forward(self, x: Tensor, problem: Problem) -> Losses:
        """Return the losses of the anchors in `problem.rows`."""
        ...

    def backward(
        self, x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of `sum_i grad_i L_i` with respect to x and, if needed, `1 / τ`.

        If `grad` is a number, it is the gradient of every loss.
        """
        ...


BACKENDS: dict[str, Backend] = {"dense": dense, "tiled": tiled}


def reference_loss(contrast: ContrastSet, options: Options, reduction: Reduction) -> Tensor:
    """Return the loss, computed by plain fp64 operations with derivatives of any order."""
    problem = pose(contrast, options._replace(dtype=torch.float64))
    losses = reference.forward(contrast.x, problem)
    return reduction.reduce(losses.each, losses.has_loss)[0]


class Loss(torch.autograd.Function):
    """Differentiable loss; its arguments are a contrast set, options, reduction and shard."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Compute the loss."""
        contrast, (options, reduction, shard) = ContrastSet(*arguments[:6]), arguments[6:]
        backend = BACKENDS.get(options.impl) or load_triton()
        problem = pose(contrast, options, shard)
        losses = backend.forward(contrast.x, problem)
        if shard is not None:
            losses = shard.join_losses(losses)
        loss, ctx.weights = reduction.reduce(losses.each, losses.has_loss)
        ctx.problem, kept = problem, losses.residuals
        if options.needs_grad and isinstance(ctx.weights, float) and not loss.ndim:
            # Compute the gradient right away, which takes the fewest steps and the least memory.
            ctx.problem, kept = None, backend.backward(contrast.x, problem, kept, ctx.weights)
        ctx.save_for_backward(*contrast[:5], reduction.weight, *kept)
        ctx.others = contrast[5], *arguments[6:]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Compute the gradients; with `create_graph=True`, differentiate the reference."""
        saved, (inv_temperature, options, reduction, shard) = ctx.saved_tensors, ctx.others
        contrast = ContrastSet._make((*saved[:5], inv_temperature))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            if shard is not None:
                raise RuntimeError("supcon_loss: create_graph=True is not supported with gather")
            needs_dx, needs_dt = ctx.needs_input_grad[0], ctx.needs_input_grad[5]
            loss = reference_loss(contrast, options, reduction)
            inputs = [contrast.x] * needs_dx + [inv_temperature] * needs_dt
            found = torch.autograd.grad(loss, inputs, grads[0].to(loss), create_graph=True)
            dx, dt = found[0] if needs_dx else None, found[-1] if needs_dt else None
            return dx, None, None, None, None, dt, None, None, None
        if isinstance(ctx.weights, float) and not grads[0].ndim:
            dx, dt = saved[6] * grads[0], None if saved[7] is None else saved[7] * grads[0]
        else:
            backend = BACKENDS.get(options.impl) or load_triton()
            problem, grad = ctx.problem or pose(contrast, options, shard), grads[0] * ctx.weights
            if not torch.compiler.is_compiling():
                ctx.problem = None  # freed, like saved tensors
            with torch.autocast(contrast.x.device.type, enabled=False):
                dx, dt = backend.backward(contrast.x, problem, saved[6:], grad)
        if shard is not None:
            # Averaging over processes divides gradients by their number, so multiply by it here.
            # Gradients of features are multiplied by it when they return to their process.
            dx[options.anchors :] *= len(shard.sizes)
            dt = None if dt is None else dt * len(shard.sizes)
        dx = dx if dx.dtype == contrast.x.dtype else dx.to(contrast.x.dtype)
        return dx, None, None, None, None, dt, None, None, None


def pose(contrast: ContrastSet, options: Options, shard: Shard | None = None) -> Problem:
    """Return the problem that a backend solves."""
    x, labels, mask, included, weight, inv_temperature = contrast
    dtype, total = options.dtype, x.shape[0]
    included = None if included is None else included.to(dtype)
    positives = find_positives(labels, mask, included, options.anchors, total, dtype)
    weight = None if weight is None else weight.to(dtype)
    rows = slice(0, options.anchors) if shard is None else shard.rows
    return Problem(inv_temperature, positives, included, weight, rows, options)


def load_triton() -> Backend:
    """Return the Triton backend, which is imported on first use."""
    from unmuddle.supcon.backends import triton

    return triton
