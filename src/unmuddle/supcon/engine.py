"""Loss of a contrast set and its gradient: normalise, call a backend, reduce.

`forward` and `backward` know no autograd. `Loss` makes them a differentiable function; the
custom operator of `operators` does the same where a graph must not look inside.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from unmuddle.supcon.backends import dense, reference, tiled
from unmuddle.supcon.distributed import Shard
from unmuddle.supcon.positives import find_positives
from unmuddle.supcon.problem import ContrastSet, Losses, Options, Problem, Residuals
from unmuddle.supcon.reduction import Reduction


class Backend(Protocol):
    """An implementation of the loss. `reference` has no backward: autograd differentiates it."""

    def forward(self, z: Tensor, problem: Problem) -> Losses:
        """Return the losses of the anchors in `problem.rows`."""
        ...

    def backward(
        self, z: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
    ) -> Tensor:
        """Return the gradient `(T, D)` of `sum_i grad_i L_i` in z; a number is that of all."""
        ...


BACKENDS: dict[str, Backend] = {"dense": dense, "tiled": tiled}


def forward(
    contrast: ContrastSet, options: Options, shard: Shard | None = None
) -> tuple[Losses, Problem, Tensor]:
    """Return the losses of the anchors, the problem and its rows; residuals begin with norms."""
    z = contrast.x if contrast.x.dtype == options.dtype else contrast.x.to(options.dtype)
    if options.normalize:  # a zero row stays zero and gets no gradient
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        norm = torch.threshold(length, 0.0, torch.inf)
        z = z / norm
    else:
        norm = z.new_empty(0, 1)
    problem = pose(z, contrast, options, shard)
    backend = BACKENDS.get(options.impl) or _triton()
    each, has_loss, residuals = backend.forward(z, problem)
    return Losses(each, has_loss, (norm, *residuals)), problem, z


def backward(
    grad: Tensor | float, problem: Problem, z: Tensor, residuals: Residuals
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and, if needed, of `1 / τ`, from those of the losses."""
    options, (norm, *of_backend), dt = problem.options, residuals, None
    backend = BACKENDS.get(options.impl) or _triton()
    dz = backend.backward(z, problem, tuple(of_backend), grad)
    if options.normalize or options.temperature_needs_grad:
        along = (z * dz).sum(1, keepdim=True)
        if options.temperature_needs_grad:
            # The losses depend on z only through z·z/τ: Euler's theorem.
            dt = along.sum() / (2 * problem.inv_temperature)
        if options.normalize:
            dz.addcmul_(z, along, value=-1).div_(norm)
    return dz, dt


def reference_loss(contrast: ContrastSet, options: Options, reduction: Reduction) -> Tensor:
    """Return the loss by plain operations in fp64, differentiable any number of times."""
    options = options._replace(dtype=torch.float64)
    z = contrast.x.double()
    if options.normalize:  # also the second derivative of a zero row is 0
        is_zero = (z == 0).all(1, keepdim=True)
        length = torch.linalg.vector_norm(torch.where(is_zero, 1, z), dim=1, keepdim=True)
        z = torch.where(is_zero, 0, z / length)
    losses = reference.forward(z, pose(z, contrast, options))
    return reduction.reduce(losses.each, losses.has_loss)[0]


class Loss(torch.autograd.Function):
    """Differentiable loss; the arguments are those of `forward`, then reduction and shard."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Compute the loss."""
        contrast, (options, reduction, shard) = ContrastSet(*arguments[:6]), arguments[6:]
        losses, problem, z = forward(contrast, options, shard)
        if shard is not None:
            losses = shard.join_losses(losses)
        loss, ctx.weights = reduction.reduce(losses.each, losses.has_loss)
        ctx.problem, kept = problem, (z, *losses.residuals)
        if options.needs_grad and isinstance(ctx.weights, float) and not loss.ndim:
            # The gradient at once: the fewest steps, and the least to keep.
            ctx.problem, kept = None, backward(ctx.weights, problem, z, losses.residuals)
        ctx.save_for_backward(*contrast[:5], reduction.weight, *kept)
        ctx.others = contrast[5], *arguments[6:]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Compute the gradients, with `create_graph=True` through the reference."""
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
            z, *residuals = saved[6:]
            problem = ctx.problem or pose(z, contrast, options, shard)
            if not torch.compiler.is_compiling():
                ctx.problem = None  # freed, as saved tensors are
            with torch.autocast(z.device.type, enabled=False):
                dx, dt = backward(grads[0] * ctx.weights, problem, z, tuple(residuals))
        if shard is not None:
            # Averaging over processes divides by their number; rows of features are scaled when
            # they return to their process.
            dx[options.anchors :] *= len(shard.sizes)
            dt = None if dt is None else dt * len(shard.sizes)
        dx = dx if dx.dtype == contrast.x.dtype else dx.to(contrast.x.dtype)
        return dx, None, None, None, None, dt, None, None, None


def pose(z: Tensor, contrast: ContrastSet, options: Options, shard: Shard | None = None) -> Problem:
    """Return the problem for a backend."""
    _, labels, mask, included, weight, inv_temperature = contrast
    included = None if included is None else included.to(z)
    positives = find_positives(labels, mask, included, options.anchors, like=z)
    weight = None if weight is None else weight.to(z)
    rows = slice(0, options.anchors) if shard is None else shard.rows
    return Problem(inv_temperature, positives, included, weight, rows, options)


def _triton() -> Backend:
    """Import Triton only where it is used."""
    from unmuddle.supcon.backends import triton

    return triton
