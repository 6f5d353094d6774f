"""Custom operators that `torch.compile` does not trace: `unmuddle::supcon` and its backward."""

from typing import Any

import torch
from torch import Tensor

from unmuddle.supcon import engine
from unmuddle.supcon.problem import ContrastSet, Options, Reduction

CONTRAST = (
    "Tensor x, Tensor? labels, Tensor? mask, Tensor? included, Tensor? denominator_weight, "
    "Tensor inv_temperature"
)
RESIDUALS = "Tensor z, Tensor norm, Tensor lse, Tensor cache"
OPTIONS = (
    "SymInt anchors, bool normalize, bool is_bounded, int ignore_index, "
    "ScalarType dtype, str positives, str denominator, ScalarType product_dtype, str impl, "
    "bool needs_grad, bool keys_need_grad, bool temperature_needs_grad"
)


def loss(contrast: ContrastSet, options: Options, reduction: Reduction) -> Tensor:
    """Return the loss, computed by the custom operators."""
    if not isinstance(contrast.inv_temperature, Tensor):
        scalar = contrast.x.new_full((), contrast.inv_temperature, dtype=options.dtype)
        contrast = contrast._replace(inv_temperature=scalar)
    each, has_loss, *_ = supcon(*contrast, *options)
    return reduction.reduce(each, has_loss)[0]


@torch.library.custom_op(
    "unmuddle::supcon",
    mutates_args=(),
    schema=f"({CONTRAST}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def supcon(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the losses, `has_loss`, and the residuals for the backward pass."""
    contrast, options = ContrastSet(*arguments[:6]), Options(*arguments[6:])
    backend = engine.BACKENDS.get(options.impl) or engine.load_triton()
    losses = backend.forward(contrast.x, engine.pose(contrast, options))
    assert losses.has_loss is not None
    z, *residuals = losses.residuals
    z = z.clone() if z is contrast.x else z.contiguous()  # operators must not return an input
    return losses.each, losses.has_loss, z, *residuals


@supcon.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    contrast, options = ContrastSet(*arguments[:6]), Options(*arguments[6:])
    x = contrast.x
    backend: Any = engine.BACKENDS.get(options.impl) or engine.load_triton()
    residuals = backend.new_residuals(x, engine.pose(contrast, options))
    each = x.new_empty(options.anchors, dtype=options.dtype)
    return each, torch.empty_like(each), *residuals


@torch.library.custom_op(
    "unmuddle::supcon_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {RESIDUALS}, {CONTRAST}, {OPTIONS}) -> (Tensor, Tensor)",
)
def supcon_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and `1 / τ`."""
    grad, *residuals = arguments[:5]
    contrast, options = ContrastSet(*arguments[5:11]), Options(*arguments[11:])
    x, problem = contrast.x, engine.pose(contrast, options)
    with torch.autocast(x.device.type, enabled=False):
        backend = engine.BACKENDS.get(options.impl) or engine.load_triton()
        dx, dt = backend.backward(x, problem, tuple(residuals), grad)
    return dx.to(x.dtype), dx.new_zeros(()) if dt is None else dt


@supcon_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, options = arguments[5], Options(*arguments[11:])
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, x.new_empty((), dtype=options.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:], *inputs[:6])
    ctx.options = inputs[6:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    dx, dt = supcon_backward(grads[0], *ctx.saved_tensors, *ctx.options)
    dt = dt if ctx.needs_input_grad[5] else None
    return dx, None, None, None, None, dt, *(None,) * len(ctx.options)


supcon.register_autograd(_backward, setup_context=_setup_context)
