"""The loss of a contrast set and its gradient: normalise, call a backend, reduce.

`forward` and `backward` know no autograd. `Loss` makes them a differentiable function; the
custom operator of `operators` does the same where a graph must not look inside.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from unmuddle.supcon.backends import dense, reference, tiled
from unmuddle.supcon.positives import find_positives
from unmuddle.supcon.problem import ContrastSet, Losses, Options, Problem, Residuals
from unmuddle.supcon.reduction import Reduction


class Backend(Protocol):
    """An implementation of the loss. `reference` has no backward: autograd differentiates it."""

    def forward(self, z: Tensor, problem: Problem) -> Losses:
        """Return the losses of the anchors in `problem.rows`."""
        ...

    def backward(
        self, z: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | None
    ) -> Tensor:
        """Return the gradient `(T, D)` of `sum_i grad_i L_i` in z, times τ; None: all are 1."""
        ...


BACKENDS: dict[str, Backend] = {"dense": dense, "tiled": tiled}


def forward(
    contrast: ContrastSet, inv_temperature: Tensor | float, options: Options
) -> tuple[Losses, Problem, Tensor]:
    """Return the losses of the anchors, the problem and its rows; residuals begin with norms."""
    z, norm = _unit_rows(contrast.x, options)
    problem = pose(z, contrast, inv_temperature, options)
    backend = BACKENDS.get(options.impl) or _triton()
    losses = backend.forward(z, problem)
    return losses._replace(residuals=(norm, *losses.residuals)), problem, z


def backward(
    grad: Tensor, weights: Tensor | float, problem: Problem, z: Tensor, residuals: Residuals
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and, if needed, of `1 / τ`, of the losses times their weights.

    `grad` is one number, of their sum, or `(N,)`.
    """
    if torch.is_autocast_enabled(z.device.type):
        with torch.autocast(z.device.type, enabled=False):
            return backward(grad, weights, problem, z, residuals)
    options, scale, (norm, *of_backend) = problem.options, problem.inv_temperature, residuals
    if isinstance(weights, Tensor):
        of_each = grad * weights
    else:
        scale = scale * weights * (1.0 if grad.ndim else grad)
        of_each = grad if grad.ndim else None
    backend = BACKENDS.get(options.impl) or _triton()
    dz = backend.backward(z, problem, tuple(of_backend), of_each)
    dt = None
    if options.normalize or options.temperature_needs_grad:
        along = (z * dz).sum(1, keepdim=True)
        if options.temperature_needs_grad:
            # The losses depend on z only through z·z/τ: Euler's theorem.
            dt = along.sum() * (scale / problem.inv_temperature / 2)
        if options.normalize:
            dz.addcmul_(z, along, value=-1)
            scale = scale / norm
    return dz.mul_(scale), dt


def reference_loss(
    contrast: ContrastSet, inv_temperature: Tensor | float, options: Options, reduction: Reduction
) -> Tensor:
    """Return the loss by plain operations in fp64, differentiable any number of times."""
    options = options._replace(dtype=torch.float64)
    z, _ = _unit_rows(contrast.x, options)
    losses = reference.forward(z, pose(z, contrast, inv_temperature, options))
    return reduction.reduce(losses.each, losses.has_loss)[0]


class Loss(torch.autograd.Function):
    """Differentiable loss; the arguments are those of `forward`, then reduction and shard."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Compute the loss."""
        *tensors, inv_temperature, options, reduction, shard = arguments
        losses, problem, z = forward(ContrastSet(*tensors), inv_temperature, options)
        if shard is not None:
            losses = shard.join_losses(losses)
        loss, weights = reduction.reduce(losses.each, losses.has_loss)
        ctx.save_for_backward(*tensors, z, *losses.residuals)
        ctx.problem, ctx.weights, ctx.reduction, ctx.shard = problem, weights, reduction, shard
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Compute the gradients, with `create_graph=True` through the reference."""
        saved = ctx.saved_tensors
        contrast, z, residuals = ContrastSet(*saved[:5]), saved[5], saved[6:]
        problem, shard, needs = ctx.problem, ctx.shard, ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            if shard is not None:
                raise RuntimeError("supcon_loss: create_graph=True is not supported with gather")
            inv_temperature = problem.inv_temperature
            loss = reference_loss(contrast, inv_temperature, problem.options, ctx.reduction)
            inputs = [contrast.x] * needs[0] + [inv_temperature] * needs[5]
            found = list(torch.autograd.grad(loss, inputs, grads[0].to(loss), create_graph=True))
            dx, dt = (found.pop(0) if needed else None for needed in (needs[0], needs[5]))
            return dx, None, None, None, None, dt, None, None, None
        dx, dt = backward(grads[0], ctx.weights, problem, z, residuals)
        if shard is not None:
            # Averaging over processes divides by their number; rows of features are scaled when
            # they return to their process.
            dx[problem.options.anchors :] *= len(shard.sizes)
            dt = None if dt is None else dt * len(shard.sizes)
        return dx.to(contrast.x.dtype), None, None, None, None, dt, None, None, None


def pose(
    z: Tensor, contrast: ContrastSet, inv_temperature: Tensor | float, options: Options
) -> Problem:
    """Return the problem for a backend."""
    _, labels, mask, included, weight = contrast
    included = None if included is None else included.to(z)
    positives = find_positives(labels, mask, included, options.anchors, like=z)
    weight = None if weight is None else weight.to(z)
    rows = slice(options.first, options.last)
    return Problem(inv_temperature, positives, included, weight, rows, options)


def _unit_rows(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return rows and the divisor `(T, 1)` of each; a zero row stays zero, without gradient."""
    z = x.to(options.dtype)
    if not options.normalize:
        return z, z.new_empty(0, 1)
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    norm = torch.threshold(norm, 0.0, torch.inf)
    return z / norm, norm


def _triton() -> Backend:
    """Import Triton only where it is used."""
    from unmuddle.supcon.backends import triton

    return triton
