"""The losses of all anchors as one operator with a derivative of its own.

`torch.compile` sees two opaque operators, `unmuddle::supcon` and `unmuddle::supcon_backward`;
inside, a backend's `log_sum_exp` and `pull` do the work that grows with the square of the batch.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.backends import one_tile, tiled
from unmuddle.supcon.distributed import Shard
from unmuddle.supcon.problem import Problem, unit_rows

NO_SECOND_DERIVATIVE = (
    "supcon_loss: only impl='reference' has a second derivative; use it with create_graph=True"
)


class Options(NamedTuple):
    """What the operators take besides tensors.

    Attributes:
        anchors: N, the first rows of the contrast set.
        first: first row of the anchors to compute.
        last: first row behind them.
        sharded: other processes compute the other anchors.
        normalize: scale rows to unit length.
        positives: "out" or "in".
        denominator: "all" or "negatives".
        product_dtype: of the operands of the large products, where the backend has a choice.
        impl: "tiled" or "triton".
        keep: there will be a backward, which similarities may be kept for.
    """

    anchors: int
    first: int
    last: int
    sharded: bool
    normalize: bool
    positives: str
    denominator: str
    product_dtype: torch.dtype
    impl: str
    keep: bool


def compute_losses(
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses of n = last - first anchors, and what the backward needs.

    Returns:
        losses: `(n,)`.
        has_loss: `(n,)`, 1 or 0.
        lse: `(2, n)`, over the denominator and (positives="in") the positives; small: `(2, 0)`.
        norm: `(T, 1)` divisor of each row, `(0, 1)` if not normalised.
        kept: `(N, T)` `dL_i/ds_ij` of a small batch; else `(K,)`, what the backend likes to keep.
    """
    z, norm = _rows(x, inv_temperature, options)
    problem = _problem(z, labels, mask, included, inv_temperature, options)
    if _is_one_tile(len(z), options):
        losses, has_loss, kept = one_tile.forward(problem, options.positives, options.denominator)
        return losses, has_loss, z.new_empty(2, 0), norm, kept

    backend = _backend(options)
    kept = z.new_empty(_kept_shape(len(z), options))
    count = problem.positives.count()[problem.rows]
    lse = backend.log_sum_exp(problem, options.denominator, kept, is_filled=False)
    has_loss = ((count != 0) & (lse != -torch.inf)).to(z.dtype)
    if options.positives == "out":
        lse_positives = lse
        numerator = problem.attraction() * inv_temperature / count
    else:
        lse_positives = backend.log_sum_exp(problem, "positives", kept, is_filled=True)
        numerator = lse_positives - count.log()
    # NaN in, NaN out, also of rows that are in no loss.
    losses = torch.where(has_loss > 0, lse - numerator, 0 * z.sum())
    return losses, has_loss, torch.stack([lse, lse_positives]), norm, kept


def compute_gradients(
    grad: Tensor,
    has_loss: Tensor,
    lse: Tensor,
    norm: Tensor,
    kept: Tensor,
    keys: bool,
    temperature: bool,
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and `1 / τ`; `grad`, `has_loss` and `lse` are of all N anchors.

    Those of keys and of `1 / τ` only if wanted.
    """
    z = x.to(inv_temperature.dtype)
    z = z / norm if options.normalize else z
    if _is_one_tile(len(z), options):
        dz = one_tile.pull(z, grad, kept)
    else:
        problem = _problem(z, labels, mask, included, inv_temperature, options)
        backend = _backend(options)
        g, a = grad * has_loss, None
        if options.positives == "out":
            a = torch.where(has_loss > 0, g / problem.positives.count(), 0)
        dz = backend.pull(problem, options.denominator, g, lse[0], a, keys, kept)
        if options.positives == "in":
            dz -= backend.pull(problem, "positives", g, lse[1], None, keys, kept)
    if options.sharded:
        dz[: options.first] = 0
        dz[options.last : options.anchors] = 0
    dx, d_inv_temperature = _to_inputs(dz, z, norm, inv_temperature, options, temperature)
    return dx.to(x.dtype), z.new_zeros(()) if d_inv_temperature is None else d_inv_temperature


def _to_inputs(
    dz: Tensor,
    z: Tensor,
    norm: Tensor,
    inv_temperature: Tensor,
    options: Options,
    temperature: bool,
) -> tuple[Tensor, Tensor | None]:
    """From the gradient in z, times τ, those of x and, if wanted, of `1 / τ`."""
    if not (options.normalize or temperature):
        return dz.mul_(inv_temperature), None
    along = torch.linalg.vecdot(z, dz).unsqueeze(1)
    # The losses depend on z only through z·z/τ: Euler's theorem gives the temperature's gradient.
    d_inv_temperature = along.sum() / 2 if temperature else None
    if options.normalize:
        dz.addcmul_(z, along, value=-1).div_(norm)
    return dz.mul_(inv_temperature), d_inv_temperature


@torch.library.custom_op("unmuddle::supcon", mutates_args=())
def supcon(
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    keys: bool,
    anchors: int,
    first: int,
    last: int,
    sharded: bool,
    normalize: bool,
    positives: str,
    denominator: str,
    product_dtype: torch.dtype,
    impl: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`compute_losses` as one operator; `keys`: whether they need a gradient."""
    options = Options(
        anchors, first, last, sharded, normalize, positives, denominator, product_dtype, impl, keep
    )
    return compute_losses(x, labels, mask, included, inv_temperature, options)


@supcon.register_fake
def _(
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    keys: bool,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    options, dtype, total = Options(*arguments), inv_temperature.dtype, x.shape[0]
    n, one = options.last - options.first, _is_one_tile(total, options)
    return (
        x.new_empty(n, dtype=dtype),
        x.new_empty(n, dtype=dtype),
        x.new_empty(2, 0 if one else n, dtype=dtype),
        x.new_empty(total if options.normalize else 0, 1, dtype=dtype),
        x.new_empty(_kept_shape(total, options), dtype=dtype),
    )


@torch.library.custom_op("unmuddle::supcon_backward", mutates_args=())
def supcon_backward(
    grad: Tensor,
    has_loss: Tensor,
    lse: Tensor,
    norm: Tensor,
    kept: Tensor,
    keys: bool,
    temperature: bool,
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    anchors: int,
    first: int,
    last: int,
    sharded: bool,
    normalize: bool,
    positives: str,
    denominator: str,
    product_dtype: torch.dtype,
    impl: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """`compute_gradients` as one operator."""
    options = Options(
        anchors, first, last, sharded, normalize, positives, denominator, product_dtype, impl, keep
    )
    return compute_gradients(
        grad, has_loss, lse, norm, kept, keys, temperature, x, labels, mask, included,
        inv_temperature, options,
    )  # fmt: skip


@supcon_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, inv_temperature = arguments[7], arguments[11]
    return torch.empty_like(x), torch.empty_like(inv_temperature)


def weighted_sum(
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    shard: Shard | None,
    keys: bool,
    options: Options,
    weights: Callable[[Tensor], Tensor],
) -> Tensor:
    """`sum_i weights(has_loss)_i L_i` over the anchors of all processes."""
    arguments = x, labels, mask, included, inv_temperature
    is_opaque = torch.compiler.is_compiling() or is_transformed()
    if _is_one_tile(len(x), options) and not is_opaque:
        return _SmallBatch.apply(*arguments, options, weights)
    losses, has_loss = anchor_losses(*arguments, shard, keys, options)
    return torch.dot(losses, weights(has_loss))


def is_transformed() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]


def anchor_losses(
    x: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    shard: Shard | None,
    keys: bool,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Losses `(N,)` of the anchors of all processes, and 1 where an anchor has one, else 0."""
    tensors = x, labels, mask, included, inv_temperature
    if torch.compiler.is_compiling():
        losses, has_loss, *_ = supcon(*tensors, keys, *options)
    else:
        losses, has_loss, *_ = _AnchorLosses.apply(*tensors, shard, keys, options)
    return losses, has_loss


class _SmallBatch(torch.autograd.Function):
    """`weighted_sum` with its gradient computed at once: fewest steps, least kept."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, *others, inv_temperature, options, weights = arguments
        z, norm = _rows(x, inv_temperature, options)
        problem = _problem(z, *others, inv_temperature=inv_temperature, options=options)
        losses, has_loss, coefficients = one_tile.forward(
            problem, options.positives, options.denominator
        )
        g = weights(has_loss)
        x_needs_gradient, *_, temperature = ctx.needs_input_grad[:5]
        if x_needs_gradient or temperature:
            dz = one_tile.pull(z, g, coefficients)
            dx, dt = _to_inputs(dz, z, norm, inv_temperature, options, temperature)
            ctx.save_for_backward(x, dx.to(x.dtype), dt)
        return torch.dot(losses, g)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, dx, dt = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx = _OnceDifferentiable.apply(dx, x)
        dt = None if dt is None else dt * grads[0]
        return dx * grads[0], None, None, None, dt, None, None


class _AnchorLosses(torch.autograd.Function):
    """`anchor_losses` in eager mode."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, shard, _, options = arguments
        outputs = compute_losses(*tensors, options=options)
        if shard is None:
            return outputs
        losses, has_loss, lse, *others = outputs
        joined = shard.join(torch.stack([losses, has_loss, *lse], 1))
        return joined[:, 0].clone(), joined[:, 1].clone(), joined[:, 2:].T.clone(), *others

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.shard, ctx.keys, ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if grads[0] is None:
            return (None,) * 8
        arguments: list[Any] = [*_backward_arguments(ctx, grads[0]), ctx.options]
        compute = _Gradients.apply if torch.is_grad_enabled() else compute_gradients
        dx, dt = compute(*arguments)
        if ctx.shard is not None:
            # Averaging over processes divides by their number; rows of features are scaled when
            # they return to their process.
            dx[ctx.options.anchors :] *= ctx.shard.processes
            dt *= ctx.shard.processes
        return dx, None, None, None, dt, None, None, None


def _backward_arguments(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    temperature = ctx.needs_input_grad[4]
    # The temperature's gradient is a sum over all rows, so it needs those of the keys.
    return grad, *saved[5:], ctx.keys or temperature, temperature, *saved[:5]


def _setup_compiled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.keys, *ctx.options = inputs[5:]


def _backward_compiled(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    dx, dt = supcon_backward(*_backward_arguments(ctx, grads[0]), *ctx.options)
    return dx, None, None, None, dt, *(None,) * (1 + len(ctx.options))


supcon.register_autograd(_backward_compiled, setup_context=_setup_compiled)


class _Gradients(torch.autograd.Function):
    """`compute_gradients` for a caller that may ask for their derivative."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return compute_gradients(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


class _OnceDifferentiable(torch.autograd.Function):
    """A gradient that depends on x in a way that is not known."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def _rows(x: Tensor, inv_temperature: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    z = x.to(inv_temperature.dtype)
    return unit_rows(z) if options.normalize else (z, z.new_empty(0, 1))


def _problem(
    z: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    included: Tensor | None,
    inv_temperature: Tensor,
    options: Options,
) -> Problem:
    rows = slice(options.first, options.last)
    return Problem.build(
        z, labels, mask, included, inv_temperature, options.anchors, rows, options.product_dtype
    )


def _is_one_tile(total: int, options: Options) -> bool:
    is_small = options.anchors * total <= one_tile.MAX_PAIRS
    return options.impl == "tiled" and is_small and not options.sharded


def _kept_shape(total: int, options: Options) -> tuple[int, ...]:
    if _is_one_tile(total, options):
        return options.anchors, total
    n = options.last - options.first
    return (tiled.kept_size(n, total) if options.impl == "tiled" and options.keep else 0,)


def _backend(options: Options) -> ModuleType:
    return import_module(f"unmuddle.supcon.backends.{options.impl}")
