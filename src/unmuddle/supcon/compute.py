"""Losses of the anchors and their gradients, without autograd: what eager mode and operators run.

A backend's `log_sum_exp` and `pull` do the work that grows with the square of the batch.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from unmuddle.supcon.backends import one_tile, tiled
from unmuddle.supcon.problem import ContrastSet, Options, Problem, outside_autocast, unit_rows
from unmuddle.supcon.reduction import EACH, AnchorWeights


class Saved(NamedTuple):
    """What the backward needs besides the inputs, of n = last - first anchors or of all N.

    Attributes:
        has_loss: `(n,)`, 1 or 0.
        lse: `(2, n)`, over the denominator and (positives="in") the positives; small: `(2, 0)`.
        norm: `(T, 1)` divisor of each row, `(0, 1)` if not normalised.
        kept: `(N, T)` `dL_i/ds_ij` of a small batch; else `(K,)`, what the backend likes to keep.
    """

    has_loss: Tensor
    lse: Tensor
    norm: Tensor
    kept: Tensor


def losses(
    contrast: ContrastSet, inv_temperature: Tensor, options: Options
) -> tuple[Tensor, Saved]:
    """`(n,)` losses of our anchors, 0 where there is none."""
    z, norm = _rows(contrast.x, inv_temperature, options)
    problem = Problem.build(z, contrast, inv_temperature, options)
    if options.one_tile:
        tile = one_tile.forward(problem, options.positives, options.denominator, EACH)
        has_loss = tile.counts.sign().squeeze(1)
        return tile.terms.sum(1), Saved(has_loss, z.new_empty(2, 0), norm, tile.coefficients)

    backend = _backend(options)
    kept = z.new_empty(kept_shape(z.shape[0], options))
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
    each = torch.where(has_loss > 0, lse - numerator, 0 * z.sum())
    return each, Saved(has_loss, torch.stack([lse, lse_positives]), norm, kept)


def gradients(
    grad: Tensor,
    saved: Saved,
    contrast: ContrastSet,
    inv_temperature: Tensor,
    options: Options,
    *,
    keys: bool,
    temperature: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, if wanted, `1 / τ` (else 0); those of keys only if wanted.

    `grad` and what was saved by anchor are of all N anchors.
    """
    with outside_autocast(contrast.x):
        return _gradients(grad, saved, contrast, inv_temperature, options, keys, temperature)


def _gradients(
    grad: Tensor,
    saved: Saved,
    contrast: ContrastSet,
    inv_temperature: Tensor,
    options: Options,
    keys: bool,
    temperature: bool,
) -> tuple[Tensor, Tensor]:
    has_loss, lse, norm, kept = saved
    z = contrast.x.to(inv_temperature.dtype)
    z = z / norm if options.normalize else z
    if options.one_tile:
        dz = one_tile.pull(z, kept * grad[:, None])
    else:
        problem = Problem.build(z, contrast, inv_temperature, options)
        backend = _backend(options)
        g, a = grad * has_loss, None
        if options.positives == "out":
            a = torch.where(has_loss > 0, g / problem.positives.count(), 0)
        # The temperature's gradient is a sum over all rows, so it needs those of the keys.
        keys = keys or temperature
        dz = backend.pull(problem, options.denominator, g, lse[0], a, keys, kept)
        if options.positives == "in":
            dz -= backend.pull(problem, "positives", g, lse[1], None, keys, kept)
    if options.sharded:
        dz[: options.first] = 0
        dz[options.last : options.anchors] = 0
    dx, dt = _to_inputs(dz, z, norm, inv_temperature, options, temperature)
    return dx.to(contrast.x.dtype), z.new_zeros(()) if dt is None else dt


def value_and_gradients(
    contrast: ContrastSet,
    inv_temperature: Tensor,
    options: Options,
    weights: AnchorWeights,
    *,
    temperature: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The weighted sum of a small batch's losses and, to be kept, its gradients of x, `1 / τ`."""
    z, norm = _rows(contrast.x, inv_temperature, options)
    problem = Problem.build(z, contrast, inv_temperature, options)
    tile = one_tile.forward(problem, options.positives, options.denominator, weights)
    if not options.keep:
        return tile.terms.sum(), None, None
    dz = one_tile.pull(z, tile.coefficients)
    dx, dt = _to_inputs(dz, z, norm, inv_temperature, options, temperature)
    return tile.terms.sum(), dx.to(contrast.x.dtype), dt


def kept_shape(total: int, options: Options) -> tuple[int, ...]:
    """Of `Saved.kept`."""
    if options.one_tile:
        return options.anchors, total
    n = options.last - options.first
    return (tiled.kept_size(n, total) if options.impl == "tiled" and options.keep else 0,)


def _rows(x: Tensor, inv_temperature: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    z = x.to(inv_temperature.dtype)
    return unit_rows(z) if options.normalize else (z, z.new_empty(0, 1))


def _to_inputs(
    dz: Tensor,
    z: Tensor,
    norm: Tensor,
    inv_temperature: Tensor,
    options: Options,
    temperature: bool,
) -> tuple[Tensor, Tensor | None]:
    """From the gradient in z, times τ, those of x and, if wanted, of `1 / τ`."""
    dt = None
    if options.normalize or temperature:
        along = (z * dz).sum(1, keepdim=True)
        # The losses depend on z only through z·z/τ: Euler's theorem.
        dt = along.sum() / 2 if temperature else None
        if options.normalize:
            dz.addcmul_(z, along, value=-1).div_(norm)
    return dz.mul_(inv_temperature), dt


def _backend(options: Options) -> ModuleType:
    return import_module(f"unmuddle.supcon.backends.{options.impl}")
