"""`engine` as two operators, opaque to `torch.compile`: `unmuddle::supcon` and its backward."""

from typing import Any

import torch
from torch import Tensor

from unmuddle.supcon import engine
from unmuddle.supcon.backends import tiled
from unmuddle.supcon.problem import ContrastSet, Options
from unmuddle.supcon.reduction import Reduction

CONTRAST = (
    "Tensor x, Tensor? labels, Tensor? mask, Tensor? included, Tensor? denominator_weight, "
    "Tensor inv_temperature"
)
RESIDUALS = "Tensor norm, Tensor lse, Tensor cache"
OPTIONS = (
    "SymInt anchors, bool normalize, ScalarType dtype, str positives, "
    "str denominator, ScalarType product_dtype, str impl, bool needs_grad, bool keys_need_grad, "
    "bool temperature_needs_grad"
)


def loss(contrast: ContrastSet, options: Options, reduction: Reduction) -> Tensor:
    """Return the loss by the operators."""
    if not isinstance(contrast.inv_temperature, Tensor):
        scalar = contrast.x.new_full((), contrast.inv_temperature, dtype=options.dtype)
        contrast = contrast._replace(inv_temperature=scalar)
    each, has_loss, *_ = supcon(*contrast, *options)
    return reduction.reduce(each, has_loss)[0]


@torch.library.custom_op(
    "unmuddle::supcon",
    mutates_args=(),
    schema=f"({CONTRAST}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def supcon(*arguments: Any) -> tuple[Tensor, ...]:
    """Return losses, `has_loss`, norms, log-sum-exp and cache."""
    losses, *_ = engine.forward(ContrastSet(*arguments[:6]), Options(*arguments[6:]))
    assert losses.has_loss is not None
    return losses.each, losses.has_loss, *losses.residuals


@supcon.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, options = arguments[0], Options(*arguments[6:])
    total, n = x.shape[0], options.anchors
    keeps = options.impl == "tiled" and options.needs_grad
    cache = tiled.cache_size(n, total) if keeps else 0
    shapes = [(n,), (n,), (total if options.normalize else 0, 1), (2, n), (cache,)]
    return tuple(x.new_empty(shape, dtype=options.dtype) for shape in shapes)


@torch.library.custom_op(
    "unmuddle::supcon_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {RESIDUALS}, {CONTRAST}, {OPTIONS}) -> (Tensor, Tensor)",
)
def supcon_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and `1 / τ`."""
    grad, *residuals = arguments[:4]
    contrast, options = ContrastSet(*arguments[4:10]), Options(*arguments[10:])
    z = contrast.x.to(options.dtype)
    z = z / residuals[0] if options.normalize else z
    problem = engine.pose(z, contrast, options)
    with torch.autocast(z.device.type, enabled=False):
        dx, dt = engine.backward(grad, problem, z, tuple(residuals))
    return dx.to(contrast.x.dtype), torch.zeros_like(arguments[9]) if dt is None else dt


@supcon_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(arguments[4], memory_format=torch.contiguous_format)
    return dx, torch.empty_like(arguments[9])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:], *inputs[:6])
    ctx.options = inputs[6:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    dx, dt = supcon_backward(grads[0], *ctx.saved_tensors, *ctx.options)
    return dx, None, None, None, None, dt, *(None,) * len(ctx.options)


supcon.register_autograd(_backward, setup_context=_setup_context)
