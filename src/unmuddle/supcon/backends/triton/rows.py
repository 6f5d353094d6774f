"""Kernels over single rows, which run before, between and after the kernels over pairs.

Both pipelines use them. Rows are processed in a given order or in their own order. Padding comes
last; in a given order, ignored rows come right before it.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmuddle.supcon.problem import Problem, Residuals

ROWS, DIMS = 16, 128  # block sizes of these kernels


@triton.jit
def load_tile(z, first, start, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a tile that starts at row `first` and dimension `start`."""
    base = z + tl.cast(first, tl.int64) * WIDTH + start
    return tl.load(base + tl.arange(0, BLOCK_M)[:, None] * WIDTH + tl.arange(0, BLOCK_D)[None, :])


@triton.jit
def _features(
    x, rows, start, inside, stride_row, stride_dim,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Load a block of rows and dimensions of the features; entries out of range are 0."""
    d = start + tl.arange(0, BLOCK_D).to(tl.int64)
    pointer = x + rows[:, None] * stride_row + d[None, :] * stride_dim
    return tl.load(pointer, inside[:, None] & (d[None, :] < DIM), 0.0).to(ACCUMULATE)


@triton.jit
def _root(x):
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def prepare_kernel(
    x, order, valid, z, norm, inv_temperature, total, stride_row, stride_dim,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ORDERED: tl.constexpr, NORMALIZE: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Compute `z_p = sqrt(1 / (τ ln 2)) x_r / |x_r|` for the p-th row r; padding is 0."""
    scale = _root(tl.load(inv_temperature) * 1.4426950408889634)
    place = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside, rows = place < total, place
    if ORDERED:
        inside = place < tl.load(valid)
        rows = tl.load(order + place, inside, 0)
    length = tl.full((BLOCK_M,), 1.0, ACCUMULATE)
    if NORMALIZE:
        squares = tl.zeros((BLOCK_M,), ACCUMULATE)
        for start in range(0, WIDTH, BLOCK_D):
            part = _features(
                x, rows, start, inside, stride_row, stride_dim, DIM, BLOCK_D, ACCUMULATE
            )  # fmt: skip
            squares += tl.sum(part * part, 1)
        length = _root(squares)
        length = tl.where(length == 0.0, float("inf"), length)  # a zero row stays zero
        tl.store(norm + place, length, place < total)
    for start in range(0, WIDTH, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        part = _features(x, rows, start, inside, stride_row, stride_dim, DIM, BLOCK_D, ACCUMULATE)
        unit = part * (scale / length)[:, None]
        tl.store(z + place[:, None] * WIDTH + d[None, :], unit.to(z.dtype.element_ty))


@triton.jit
def losses_kernel(
    totals, total_parts, total_stride, peaks, positive_peaks,
    positives, parts, stride, count_offset, order, each, has_loss, kept, total,
    BLOCK: tl.constexpr, ORDERED: tl.constexpr, BOUNDED: tl.constexpr, INSIDE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Compute `L = log sum exp s - mean s of positives`, and two numbers for the backward pass.

    The first number is 1 / sum if `BOUNDED`, else the logarithm of the sum. The second is
    1 / count, or the logarithm of the sum over the positives if `INSIDE`. For an anchor without a
    loss, they are set to values that make its gradient 0.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    count = tl.zeros((BLOCK,), ACCUMULATE)
    for part in range(parts):
        count += tl.load(positives + part * stride + count_offset + place, inside, 0.0)
    has = count != 0.0  # true for NaN, so NaN propagates
    if BOUNDED:
        exps = _added_places(totals, total_parts, total_stride, place, inside, BLOCK, ACCUMULATE)
        some = tl.where(has, exps, 1.0)
        log_sum, first = tl.log2(some), tl.where(has, 1.0 / some, 0.0)
    else:
        peak, exps = _added_exps(
            totals, peaks, total_parts, total_stride, place, inside, BLOCK, ACCUMULATE
        )  # fmt: skip
        has = has & (peak != float("-inf"))
        log_sum = peak + tl.log2(tl.where(has, exps, 1.0))
        first = tl.where(has, log_sum, float("inf"))
    counted = tl.where(has, count, 1.0)
    if INSIDE:
        peak, sums = _added_exps(
            positives, positive_peaks, parts, stride, place, inside, BLOCK, ACCUMULATE
        )  # fmt: skip
        second = tl.where(has, peak + tl.log2(tl.where(has, sums, 1.0)), float("inf"))
        numerator = second - tl.log2(counted)
    else:
        attraction = _added_places(positives, parts, stride, place, inside, BLOCK, ACCUMULATE)
        numerator, second = attraction / counted, tl.where(has, 1.0 / counted, 0.0)
    loss = 0.6931471805599453 * (log_sum - numerator)
    rows = tl.load(order + place, inside, 0) if ORDERED else place
    tl.store(each + rows, tl.where(has, loss, 0.0 * exps), inside)  # NaN in, NaN out
    tl.store(has_loss + rows, has.to(ACCUMULATE), inside)
    tl.store(kept + place, first, inside)
    tl.store(kept + total + place, second, inside)


@triton.jit
def _added_places(
    values, parts, stride, place, inside, BLOCK: tl.constexpr, ACCUMULATE: tl.constexpr
):  # fmt: skip
    """Sum the parts of the values at some positions."""
    added = tl.zeros((BLOCK,), ACCUMULATE)
    for part in range(parts):
        added += tl.load(values + part * stride + place, inside, 0.0)
    return added


@triton.jit
def _added_exps(
    sums, peaks, parts, stride, place, inside, BLOCK: tl.constexpr, ACCUMULATE: tl.constexpr
):  # fmt: skip
    """Add partial sums of exponentials; return the largest exponent and the sum relative to it."""
    peak = tl.full((BLOCK,), float("-inf"), ACCUMULATE)
    for part in range(parts):
        peak = tl.maximum(peak, tl.load(peaks + part * stride + place, inside, float("-inf")))
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    added = tl.zeros((BLOCK,), ACCUMULATE)
    for part in range(parts):
        exponent = tl.load(peaks + part * stride + place, inside, float("-inf")) - shift
        added += tl.load(sums + part * stride + place, inside, 0.0) * tl.exp2(exponent)
    return peak, added


@triton.jit
def finish_kernel(
    x, order, norm, dz, dx, along_rows, inv_temperature, total, stride_row, stride_dim, parts,
    part_stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ORDERED: tl.constexpr, NORMALIZE: tl.constexpr, ACCUMULATE: tl.constexpr, TRAINS: tl.constexpr,
):  # fmt: skip
    """Compute the gradient dx_r of the p-th row r.

    `dx_r = sqrt(ln 2 / τ) (dz_p - x_r (x_r · dz_p) / |x_r|²) / |x_r|`
    """
    factor = _root(tl.load(inv_temperature) * 0.6931471805599453)
    place = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = place < total
    rows = tl.load(order + place, inside, 0) if ORDERED else place
    length = tl.full((BLOCK_M,), 1.0, ACCUMULATE)
    if NORMALIZE:
        length = tl.load(norm + place, inside, float("inf"))
    along = tl.zeros((BLOCK_M,), ACCUMULATE)
    if NORMALIZE or TRAINS:
        for start in range(0, WIDTH, BLOCK_D):
            row = _features(
                x, rows, start, inside, stride_row, stride_dim, DIM, BLOCK_D, ACCUMULATE
            )  # fmt: skip
            pull = _added(dz, place, start, parts, part_stride, WIDTH, BLOCK_M, BLOCK_D, ACCUMULATE)
            along += tl.sum(row / length[:, None] * pull, 1)
    if TRAINS:
        tl.store(along_rows + place, factor * along, inside)
    for start in range(0, WIDTH, BLOCK_D):
        out = _added(dz, place, start, parts, part_stride, WIDTH, BLOCK_M, BLOCK_D, ACCUMULATE)
        if NORMALIZE:
            row = _features(
                x, rows, start, inside, stride_row, stride_dim, DIM, BLOCK_D, ACCUMULATE
            )  # fmt: skip
            out -= row / length[:, None] * along[:, None]
        out *= (factor / length)[:, None]
        d = start + tl.arange(0, BLOCK_D)
        kept = inside[:, None] & (d[None, :] < DIM)
        tl.store(dx + rows[:, None] * DIM + d[None, :], out.to(dx.dtype.element_ty), kept)


@triton.jit
def _added(
    dz, place, start, parts, part_stride,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Sum the parts of the gradient of a block of padded rows."""
    total = tl.zeros((BLOCK_M, BLOCK_D), ACCUMULATE)
    pointer = dz + place[:, None] * WIDTH + start + tl.arange(0, BLOCK_D)[None, :]
    for part in range(parts):
        total += tl.load(pointer + tl.cast(part, tl.int64) * part_stride)
    return total


@triton.jit
def attraction_kernel(
    z, prefix, begin, end, valid, positives, total, offset,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add `z_p · (sum of the other rows of its class)` over a chunk of dimensions.

    Also count the other rows of the class.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, CHUNK)
    inside = place < tl.load(valid)
    first, last = tl.load(begin + place, inside, 0), tl.load(end + place, inside, 1)
    unit = tl.load(z + place[:, None] * WIDTH + offset + d[None, :]).to(tl.float32)
    others = _class_sum(prefix, first, last, d, CHUNK) - unit
    attraction = tl.where(inside, tl.sum(unit * others, 1), 0.0)
    is_row = place < total
    if offset > 0:
        attraction += tl.load(positives + place, is_row, 0.0)
    tl.store(positives + place, attraction, is_row)
    tl.store(
        positives + total + place, tl.where(inside, last - first - 1, 0).to(tl.float32), is_row
    )


@triton.jit
def positives_kernel(
    z, prefix, weighted, begin, end, valid, a, dz, offset,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Subtract the gradient of the positive term from `dz`, for a chunk of dimensions.

    It is `a_p (class sum of z - z_p) + (class sum of a z - a_p z_p)`.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, CHUNK)
    inside = place < tl.load(valid)
    first, last = tl.load(begin + place, inside, 0), tl.load(end + place, inside, 1)
    row_a = tl.load(a + place, inside, 0.0)[:, None]
    unit = tl.load(z + place[:, None] * WIDTH + offset + d[None, :]).to(tl.float32)
    pulled = row_a * (_class_sum(prefix, first, last, d, CHUNK) - 2.0 * unit)
    pulled += _class_sum(weighted, first, last, d, CHUNK)
    pointer = dz + place[:, None] * WIDTH + offset + d[None, :]
    tl.store(pointer, tl.where(inside[:, None], tl.load(pointer) - pulled, 0.0))


@triton.jit
def _class_sum(prefix, first, last, d, CHUNK: tl.constexpr):
    """Return the sum of rows `first` to `last - 1` as a difference of fp64 prefix sums."""
    upper = tl.load(prefix + (last - 1)[:, None] * CHUNK + d[None, :])
    below = (first - 1)[:, None]
    lower = tl.load(prefix + below * CHUNK + d[None, :], below >= 0, 0.0)
    return (upper - lower).to(tl.float32)


def allocate(
    x: Tensor, padded: int, width: int, dtype: torch.dtype, problem: Problem, places: int
) -> Residuals:
    """Allocate unit rows, their lengths, two numbers per anchor of this process, and places."""
    options, ours = problem.options, problem.rows
    return (
        x.new_empty(padded, width, dtype=dtype),
        x.new_empty(len(x) if options.normalize else 0, 1, dtype=options.dtype),
        x.new_empty(2, ours.stop - ours.start, dtype=options.dtype),
        x.new_empty(places, dtype=torch.int64),
    )


def prepare(
    x: Tensor, order: Tensor, valid: Tensor, z: Tensor, norm: Tensor, problem: Problem
) -> None:
    """Fill z with unit rows times `sqrt(1 / (τ ln 2))`, whose products are `s_ij / ln 2`."""
    prepare_kernel[(len(z) // ROWS,)](
        x, order, valid, z, norm, _on_device(problem, x), len(x), x.stride(0), x.stride(1),
        **_sizes(x, order, z, problem),
    )  # fmt: skip


def finish(
    x: Tensor,
    order: Tensor,
    norm: Tensor,
    dz: Tensor,
    problem: Problem,
    unit: Tensor | None,
    moved: int,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and, if needed, of `1 / τ`.

    `dz` `(parts, padded, width)` holds the parts of the gradient of the first `moved` rows of z,
    divided by `unit`. The gradient of the other rows is 0.
    """
    trains, inv_temperature = problem.options.temperature_needs_grad, _on_device(problem, x)
    if unit is not None:
        dz *= unit
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if moved < len(x):
        dx[moved:] = 0
    along = dz.new_empty(moved) if trains else dz
    if moved:
        finish_kernel[(triton.cdiv(moved, ROWS),)](
            x, order, norm, dz, dx, along, inv_temperature, moved, x.stride(0), x.stride(1),
            len(dz), dz.stride(0), TRAINS=trains, **_sizes(x, order, dz[0], problem),
        )  # fmt: skip
    # Euler's theorem: the losses depend on z and τ only through z_i · z_j / τ.
    return dx, along.sum() / (2 * inv_temperature) if trains else None


def _sizes(x: Tensor, order: Tensor, z: Tensor, problem: Problem) -> dict[str, Any]:
    """Return the compile-time arguments of the kernels over rows."""
    width, options = z.shape[1], problem.options
    return {
        "DIM": x.shape[1], "WIDTH": width, "BLOCK_M": ROWS, "BLOCK_D": min(width, DIMS),
        "ORDERED": len(order) > 0, "NORMALIZE": options.normalize,
        "ACCUMULATE": accumulate(options.dtype),
    }  # fmt: skip


def scaled(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the losses, scaled to the range of fp16 if needed, and the scale."""
    if dtype != torch.float16:
        return grad.contiguous(), None
    unit = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)
    return grad / unit, unit


def _on_device(problem: Problem, x: Tensor) -> Tensor:
    """Return `1 / τ` as a tensor, created on the device to avoid a synchronising copy."""
    if isinstance(problem.inv_temperature, Tensor):
        return problem.inv_temperature
    return x.new_full((), problem.inv_temperature, dtype=problem.options.dtype)


def operand_type(problem: Problem) -> torch.dtype:
    """Return the dtype of the operands of matrix products."""
    dtype = problem.options.product_dtype
    # Triton's interpreter multiplies bfloat16 numbers as if they were integers.
    return torch.float32 if IS_INTERPRETED and dtype == torch.bfloat16 else dtype


def accumulate(dtype: torch.dtype) -> tl.dtype:
    """Return the dtype in which matrix products accumulate."""
    return tl.float64 if dtype == torch.float64 else tl.float32


IS_INTERPRETED = not isinstance(prepare_kernel, triton.JITFunction)  # on a CPU, for tests
