"""`compute` as two operators, opaque to `torch.compile`: `unmuddle::supcon` and its backward."""

from typing import Any

import torch
from torch import Tensor

from unmuddle.supcon import compute
from unmuddle.supcon.compute import Saved
from unmuddle.supcon.problem import ContrastSet, Options

CONTRAST = "Tensor x, Tensor? labels, Tensor? mask, Tensor? included, Tensor inv_temperature"
OPTIONS = (
    "SymInt anchors, SymInt first, SymInt last, bool sharded, bool normalize, str positives, "
    "str denominator, ScalarType product_dtype, str impl, bool one_tile, bool keep"
)
SAVED = "Tensor has_loss, Tensor lse, Tensor norm, Tensor kept"


@torch.library.custom_op(
    "unmuddle::supcon",
    mutates_args=(),
    schema=f"({CONTRAST}, bool keys, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def supcon(*arguments: Any) -> tuple[Tensor, ...]:
    """Losses `(n,)` and what the backward needs; `keys`: whether they need a gradient."""
    x, labels, mask, included, inv_temperature, _, *options = arguments
    contrast = ContrastSet(x, labels, mask, included)
    losses, saved = compute.losses(contrast, inv_temperature, Options(*options))
    return losses, *saved


@supcon.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, inv_temperature, options = arguments[0], arguments[4], Options(*arguments[6:])
    total, dtype, n = x.shape[0], inv_temperature.dtype, options.last - options.first
    return (
        x.new_empty(n, dtype=dtype),
        x.new_empty(n, dtype=dtype),
        x.new_empty(2, 0 if options.one_tile else n, dtype=dtype),
        x.new_empty(total if options.normalize else 0, 1, dtype=dtype),
        x.new_empty(compute.kept_shape(total, options), dtype=dtype),
    )


@torch.library.custom_op(
    "unmuddle::supcon_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad, {SAVED}, {CONTRAST}, bool keys, bool temperature, {OPTIONS}) -> "
        "(Tensor, Tensor)"
    ),
)
def supcon_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gradients of x and `1 / τ`."""
    grad, saved, contrast = arguments[0], Saved(*arguments[1:5]), ContrastSet(*arguments[5:9])
    inv_temperature, keys, temperature, *options = arguments[9:]
    return compute.gradients(
        grad,
        saved,
        contrast,
        inv_temperature,
        Options(*options),
        keys=keys,
        temperature=temperature,
    )


@supcon_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(arguments[5], memory_format=torch.contiguous_format)
    return dx, torch.empty_like(arguments[9])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.keys, *ctx.options = inputs[5:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs, outputs = saved[:5], saved[5:]
    temperature = ctx.needs_input_grad[4]
    dx, dt = supcon_backward(grads[0], *outputs, *inputs, ctx.keys, temperature, *ctx.options)
    return dx, None, None, None, dt, *(None,) * (1 + len(ctx.options))


supcon.register_autograd(_backward, setup_context=_setup_context)
