"""`compute` with its derivative: what eager mode and `torch.func` differentiate."""

from typing import Any

import torch
from torch import Tensor

from unmuddle.supcon import compute, operators
from unmuddle.supcon.compute import Saved
from unmuddle.supcon.distributed import Shard
from unmuddle.supcon.problem import ContrastSet, Options
from unmuddle.supcon.reduction import AnchorWeights


def weighted_sum(
    contrast: ContrastSet,
    inv_temperature: Tensor,
    options: Options,
    shard: Shard | None,
    *,
    keys: bool,
    weights: AnchorWeights,
) -> Tensor:
    """`sum_i w_i L_i` over the anchors of all processes."""
    if options.one_tile and not torch.compiler.is_compiling() and not _is_transformed():
        return _SmallBatch.apply(*contrast, inv_temperature, options, weights)
    losses, has_loss = anchor_losses(contrast, inv_temperature, options, shard, keys=keys)
    return torch.dot(losses, weights.of(has_loss))


def anchor_losses(
    contrast: ContrastSet,
    inv_temperature: Tensor,
    options: Options,
    shard: Shard | None,
    *,
    keys: bool,
) -> tuple[Tensor, Tensor]:
    """Losses `(N,)` of the anchors of all processes, and 1 where an anchor has one, else 0.

    `keys`: whether they need a gradient.
    """
    if torch.compiler.is_compiling():
        losses, has_loss, *_ = operators.supcon(*contrast, inv_temperature, keys, *options)
    else:
        losses, has_loss, *_ = _AnchorLosses.apply(*contrast, inv_temperature, shard, keys, options)
    return losses, has_loss


class _SmallBatch(torch.autograd.Function):
    """`weighted_sum` with its gradient computed at once: fewest steps, least kept."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *contrast, inv_temperature, options, weights = arguments
        value, dx, dt = compute.value_and_gradients(
            ContrastSet(*contrast),
            inv_temperature,
            options,
            weights,
            temperature=ctx.needs_input_grad[4],
        )
        ctx.save_for_backward(dx, dt, contrast[0], inv_temperature)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        arguments = grads[0], *ctx.saved_tensors
        dx, dt = _once(_scaled, *arguments) if torch.is_grad_enabled() else _scaled(*arguments)
        return dx, None, None, None, dt, None, None


def _scaled(
    grad: Tensor, dx: Tensor, dt: Tensor | None, *_: Tensor
) -> tuple[Tensor, Tensor | None]:
    return dx * grad, None if dt is None else dt * grad


class _AnchorLosses(torch.autograd.Function):
    """`anchor_losses`."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *contrast, inv_temperature, shard, _, options = arguments
        losses, saved = compute.losses(ContrastSet(*contrast), inv_temperature, options)
        if shard is None:
            return losses, *saved
        joined = shard.join(torch.stack([losses, saved.has_loss, *saved.lse], 1)).T.clone()
        return joined[0].clone(), joined[1].clone(), joined[2:].clone(), saved.norm, saved.kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:], *inputs[:5])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.shard, ctx.keys, ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if grads[0] is None:
            return (None,) * 8
        temperature, options = ctx.needs_input_grad[4], ctx.options

        def gradients(grad: Tensor, *saved: Any) -> tuple[Tensor, Tensor]:
            *of_anchors, x, labels, mask, included, inv_temperature = saved
            contrast = ContrastSet(x, labels, mask, included)
            return compute.gradients(
                grad,
                Saved(*of_anchors),
                contrast,
                inv_temperature,
                options,
                keys=ctx.keys,
                temperature=temperature,
            )

        arguments = grads[0], *ctx.saved_tensors
        dx, dt = _once(gradients, *arguments) if torch.is_grad_enabled() else gradients(*arguments)
        if ctx.shard is not None:
            # Averaging over processes divides by their number; rows of features are scaled when
            # they return to their process.
            dx[options.anchors :] *= ctx.shard.processes
            dt *= ctx.shard.processes
        return dx, None, None, None, dt, None, None, None


class _Once(torch.autograd.Function):
    """Gradients that depend on their inputs in a way that is not known."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        function, *inputs = arguments
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "supcon_loss: only impl='reference' has a second derivative; use it with "
            "create_graph=True"
        )


_once = _Once.apply


def _is_transformed() -> bool:
    """Whether a transform of torch.func is active: it needs every saved tensor as an output."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
