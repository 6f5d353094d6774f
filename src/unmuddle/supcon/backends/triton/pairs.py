"""Kernels for any labels, which compare each anchor with all rows; five launches.

The columns are split among programs, each of which writes its partial results to its own plane.
Similarities are bounded, and need no running maximum, if rows have unit length and the temperature
is known to be large enough.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmuddle.supcon.backends.triton.rows import (
    DIMS,
    accumulate,
    allocate,
    finish,
    load_tile,
    losses_kernel,
    operand_type,
    prepare,
    scaled,
)
from unmuddle.supcon.positives import Classes
from unmuddle.supcon.problem import Losses, Problem, Residuals

PROGRAMS = 512  # about four for each multiprocessor of a large GPU
SPLITS = 8


@triton.jit
def _similarities(
    z, row, col,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    s = tl.full((BLOCK_M, BLOCK_N), 0.0, ACCUMULATE)
    for start in range(0, WIDTH, BLOCK_D):
        x = load_tile(z, row, start, WIDTH, BLOCK_M, BLOCK_D)
        k = load_tile(z, col, start, WIDTH, BLOCK_N, BLOCK_D)
        s = tl.dot(x, tl.trans(k), s, input_precision=PRECISION, out_dtype=ACCUMULATE)
    return s


@triton.jit
def _add_exps(peak, exps, s):
    """Add `sum_j exp2 s_ij` to `exps`, both relative to the largest exponent seen."""
    larger = tl.maximum(peak, tl.max(s, 1))
    shift = tl.where(larger == float("-inf"), 0.0, larger)
    return larger, exps * tl.exp2(peak - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)


@triton.jit
def sums_kernel(
    z, labels, log_weight, planes, first_row, total, padded, columns, ignore_index,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BOUNDED: tl.constexpr, WEIGHTED: tl.constexpr, NEGATIVES: tl.constexpr, INSIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Sum over some columns: exponentials, `s_ij` of the positives, and the number of positives.

    Unless `BOUNDED`, exponentials are relative to the largest exponent, which is stored after the
    sums. With `INSIDE`, exponentials of the positives are summed instead of their `s_ij`.
    """
    row = (first_row // BLOCK_M + tl.program_id(0)) * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    row_label = tl.load(labels + rows, rows < total, ignore_index)[:, None]
    exps = tl.zeros((BLOCK_M,), ACCUMULATE)
    attraction = tl.zeros((BLOCK_M,), ACCUMULATE)
    count = tl.zeros((BLOCK_M,), ACCUMULATE)
    peak = tl.full((BLOCK_M,), float("-inf"), ACCUMULATE)
    positive_peak = tl.full((BLOCK_M,), float("-inf"), ACCUMULATE)
    first = tl.program_id(1) * columns
    for start in range(first, tl.minimum(first + columns, padded), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        col_label = tl.load(labels + cols, cols < total, ignore_index)[None, :]
        s = _similarities(z, row, start, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, ACCUMULATE)
        is_pair = (rows[:, None] != cols[None, :]) & (col_label != ignore_index)
        is_positive = is_pair & (row_label == col_label)
        if BOUNDED:
            exps += tl.sum(tl.exp2(s) * is_pair.to(tl.float32), 1)  # a product propagates NaN
        else:
            is_term = is_pair & (row_label != col_label) if NEGATIVES else is_pair
            terms = s
            if WEIGHTED:
                terms += tl.load(log_weight + cols, cols < total, 0.0)[None, :]
            terms = tl.where(is_term, terms, 0.0 * s + float("-inf"))  # propagates NaN
            peak, exps = _add_exps(peak, exps, terms)
        if INSIDE:
            positive_peak, attraction = _add_exps(
                positive_peak, attraction, tl.where(is_positive, s, float("-inf"))
            )
        else:
            attraction += tl.sum(tl.where(is_positive, s, 0.0), 1)
        count += tl.sum(is_positive.to(tl.float32), 1)
    stride = tl.num_programs(0) * BLOCK_M
    size = 3 if BOUNDED else 5
    plane = planes + tl.program_id(1).to(tl.int64) * size * stride
    plane += tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(plane, exps)
    tl.store(plane + stride, attraction)
    tl.store(plane + 2 * stride, count)
    if not BOUNDED:
        tl.store(plane + 3 * stride, peak)
        tl.store(plane + 4 * stride, positive_peak)


@triton.jit
def _weighed_exps(of_row, of_col, row_g, col_g, is_term):
    of_row = tl.where(is_term, of_row, float("-inf"))
    of_col = tl.where(is_term, of_col, float("-inf"))
    return tl.exp2(of_row) * row_g + tl.exp2(of_col) * col_g


@triton.jit
def gradient_kernel(
    z, labels, log_weight, g, kept, dz, first_row, last_row, anchors, total, padded, columns,
    ignore_index,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BOUNDED: tl.constexpr, WEIGHTED: tl.constexpr,
    NEGATIVES: tl.constexpr, INSIDE: tl.constexpr, ATTRACTS: tl.constexpr, SHARED: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Compute `dz_i = sum_j (g_i d_ij + g_j d_ji) z_j` over some columns; `d_ij = dL_i / ds_ij`.

    `kept` holds two numbers per anchor. The first is the inverse of the sum of its exponentials if
    `BOUNDED`, else the logarithm of the sum. The second is `1 / count` of its positives, or the
    logarithm of their sum if `INSIDE`. If the anchors are `SHARED` with other processes, pairs
    without a row of this process are skipped.
    """
    row = tl.program_id(0) * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    out = tl.program_id(2) * BLOCK_OUT
    no_sum = 0.0 if BOUNDED else float("inf")
    no_positive = float("inf") if INSIDE else 0.0
    row_label = tl.load(labels + rows, rows < total, ignore_index)[:, None]
    row_g = tl.load(g + rows, rows < anchors, 0.0)[:, None]
    row_sum = tl.load(kept + rows, rows < anchors, no_sum)[:, None]
    row_positive = tl.load(kept + anchors + rows, rows < anchors, no_positive)[:, None]
    accumulator = tl.full((BLOCK_M, BLOCK_OUT), 0.0, ACCUMULATE)
    first = tl.program_id(1) * columns
    stop = tl.minimum(first + columns, padded)
    stop = tl.where(row >= anchors, tl.minimum(stop, last_row), stop)  # keys pair with anchors only
    is_idle = (row + BLOCK_M <= first_row) | ((row >= last_row) & (row + BLOCK_M <= anchors))
    for start in range(first, tl.where(is_idle, first, stop), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        col_label = tl.load(labels + cols, cols < total, ignore_index)[None, :]
        col_g = tl.load(g + cols, cols < anchors, 0.0)[None, :]
        col_sum = tl.load(kept + cols, cols < anchors, no_sum)[None, :]
        s = _similarities(z, row, start, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, ACCUMULATE)
        is_pair = (rows[:, None] != cols[None, :]) & (row_label != ignore_index)
        is_pair = is_pair & (col_label != ignore_index)
        if SHARED:
            is_ours = (rows >= first_row) & (rows < last_row)
            is_met = (rows >= anchors)[:, None] & ((cols >= first_row) & (cols < last_row))[None, :]
            is_pair = is_pair & (is_ours[:, None] | is_met)
        is_same = row_label == col_label
        if BOUNDED:
            w = tl.exp2(s) * (row_g * row_sum + col_g * col_sum)
        else:
            of_row, of_col = s - row_sum, s - col_sum
            if WEIGHTED:
                of_row += tl.load(log_weight + cols, cols < total, 0.0)[None, :]
                of_col += tl.load(log_weight + rows, rows < total, 0.0)[:, None]
            is_term = is_pair & (is_same == 0) if NEGATIVES else is_pair
            w = _weighed_exps(of_row, of_col, row_g, col_g, is_term)
        if ATTRACTS:
            col_positive = tl.load(kept + anchors + cols, cols < anchors, no_positive)[None, :]
            if INSIDE:
                of_row, of_col = s - row_positive, s - col_positive
                w -= _weighed_exps(of_row, of_col, row_g, col_g, is_pair & is_same)
            else:
                w -= tl.where(is_same, row_g * row_positive + col_g * col_positive, 0.0)
        w = tl.where(is_pair, w, 0.0)
        k = load_tile(z, start, out, WIDTH, BLOCK_N, BLOCK_OUT)
        accumulator = tl.dot(
            w.to(k.dtype), k, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATE
        )
    stride = tl.num_programs(0).to(tl.int64) * BLOCK_M
    base = dz + (tl.program_id(1) * stride + row) * WIDTH + out
    tl.store(
        base + (tl.arange(0, BLOCK_M)[:, None] * WIDTH + tl.arange(0, BLOCK_OUT)[None, :]),
        accumulator,
    )


class Blocks(NamedTuple):
    """Block sizes, warps and pipeline stages of a program."""

    rows: int
    cols: int
    dim: int
    out: int
    warps: int
    stages: int


class Layout(NamedTuple):
    """Padded rows and dimensions, block sizes, and the compile-time arguments of the kernels."""

    padded: int
    width: int
    blocks: Blocks
    tiling: dict[str, Any]


def choose_blocks(dim: int, dtype: torch.dtype) -> Blocks:
    """Return the fastest block sizes tried that give correct results and spill no registers.

    Blocks of 64 fp32 rows use Hopper's instructions for groups of four warps. With eight warps,
    Triton 3.6 computed wrong gradients for them (three TF32 products). Blocks of 16 rows use the
    instructions of older GPUs.
    """
    out = min(max(triton.next_power_of_2(dim), 16), DIMS)
    if dtype == torch.float64:
        return Blocks(rows=32, cols=32, dim=16, out=min(out, 32), warps=4, stages=2)
    if dtype == torch.float32:
        return Blocks(rows=16, cols=64, dim=min(out, 32), out=out, warps=4, stages=2)
    return Blocks(rows=64, cols=32, dim=min(out, 64), out=out, warps=4, stages=2)


def choose_layout(n: int, dim: int, dtype: torch.dtype) -> Layout:
    """Return the layout for n rows of `dim` dimensions."""
    blocks = choose_blocks(dim, dtype)
    size = max(blocks.rows, blocks.cols)
    unit = min(max(triton.next_power_of_2(dim), 16), DIMS)
    width = triton.cdiv(dim, unit) * unit
    tiling = {
        "WIDTH": width, "BLOCK_M": blocks.rows, "BLOCK_N": blocks.cols, "BLOCK_D": blocks.dim,
        "PRECISION": precision(dtype), "ACCUMULATE": accumulate(dtype),
        "num_warps": blocks.warps, "num_stages": blocks.stages,
    }  # fmt: skip
    return Layout(triton.cdiv(n, size) * size, width, blocks, tiling)


def precision(dtype: torch.dtype) -> str:
    """Return the input precision of products; three TF32 products are nearly as exact as fp32."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "medium":
        return "tf32x3"
    return "tf32" if dtype == torch.float32 else "ieee"


def new_residuals(x: Tensor, problem: Problem) -> Residuals:
    """Allocate the residuals for the backward pass."""
    dtype = operand_type(problem)
    padded, width, *_ = choose_layout(*x.shape, dtype)
    return allocate(x, padded, width, dtype, problem, places=0)


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of the anchors of this process."""
    options, ours, total = problem.options, problem.rows, len(x)
    count = ours.stop - ours.start
    residuals = z, norm, kept, order = new_residuals(x, problem)
    each, has_loss = x.new_empty(2, count, dtype=options.dtype)
    losses = Losses(each, has_loss, residuals)
    prepare(x, order, order, z, norm, problem)
    if count == 0:
        return losses
    padded, _, blocks, tiling = choose_layout(*x.shape, z.dtype)
    operands, ignored, flags = _operands(problem, x)
    height = triton.cdiv(ours.stop, blocks.rows) - ours.start // blocks.rows
    splits, columns = _split(padded, blocks, height)
    size = 3 if flags["BOUNDED"] else 5
    planes = x.new_empty(splits, size, height * blocks.rows, dtype=options.dtype)
    sums_kernel[(height, splits)](
        z, *operands, planes, ours.start, total, padded, columns, ignored, **flags, **tiling
    )
    planes = planes[:, :, ours.start % blocks.rows :]
    positives = planes[:, 1:3]
    if not isinstance(problem.positives, Classes):
        rows = z[:total, : x.shape[1]].to(options.dtype)
        attraction = torch.linalg.vecdot(rows[: options.anchors], problem.positives.sum(rows))
        positives = torch.stack([attraction, problem.positives.count()])[None, :, ours]
    losses_kernel[(triton.cdiv(count, 256),)](
        planes, splits, planes.stride(0), planes[:, -2], planes[:, -1],
        positives, len(positives), positives.stride(0), positives.stride(1),
        order, each, has_loss, kept, count, BLOCK=256, ORDERED=False,
        BOUNDED=flags["BOUNDED"], INSIDE=flags["INSIDE"], ACCUMULATE=tiling["ACCUMULATE"],
    )  # fmt: skip
    return losses


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `sum_i grad_i L_i` with respect to x and, if needed, `1 / τ`."""
    assert isinstance(grad, Tensor)
    (z, norm, kept, order), options, ours = residuals, problem.options, problem.rows
    padded, width, blocks, tiling = choose_layout(*x.shape, z.dtype)
    operands, ignored, flags = _operands(problem, x)
    g, unit = scaled(grad, z.dtype)
    moved, is_classed = options.anchors, isinstance(problem.positives, Classes)
    if options.keys_need_grad:
        moved = len(x)
    height, across = triton.cdiv(moved, blocks.rows), width // blocks.out
    splits, columns = _split(padded, blocks, max(height * across, 1))
    dz = x.new_empty(splits, height * blocks.rows, width, dtype=options.dtype)
    if moved:
        gradient_kernel[(height, splits, across)](
            z, *operands, g, kept, dz, ours.start, ours.stop, options.anchors, len(x), padded,
            columns, ignored, BLOCK_OUT=blocks.out, ATTRACTS=is_classed,
            SHARED=ours != slice(0, options.anchors), **flags, **tiling,
        )  # fmt: skip
    if moved and not is_classed:
        rows = z[: len(x), : x.shape[1]].to(options.dtype)
        attraction = problem.of_ours(problem.attraction_gradient(rows, g * kept[1]))
        dz[0, :moved, : x.shape[1]] -= attraction[:moved]
    return finish(x, order, norm, dz, problem, unit, moved)


def _operands(problem: Problem, x: Tensor) -> tuple[list[Tensor], int, dict[str, bool]]:
    """Return labels and log2 weights of rows, the label to ignore, and flags of the kernels."""
    options, positives, weight = problem.options, problem.positives, problem.denominator_weight
    ignored = options.ignore_index
    if isinstance(positives, Classes):
        labels = positives.labels.contiguous()
    elif (options.positives, options.denominator) != ("out", "all"):
        raise ValueError(
            "impl: 'triton' takes positives='in' and denominator='negatives' with integer labels "
            "only"
        )
    else:  # all included rows form one class
        labels, ignored = torch.zeros(len(x), dtype=torch.int64, device=x.device), -1
        if problem.included is not None:
            labels.copy_(problem.included - 1)
    flags = {
        "BOUNDED": options.is_bounded,
        "WEIGHTED": weight is not None,
        "NEGATIVES": options.denominator == "negatives",
        "INSIDE": options.positives == "in",
    }
    return [labels, labels if weight is None else weight.log2().contiguous()], ignored, flags


def _split(padded: int, blocks: Blocks, others: int) -> tuple[int, int]:
    """Return how many programs share the columns of a block of rows, and the columns of each."""
    tiles = padded // blocks.cols
    wanted = triton.cdiv(PROGRAMS, others)
    share = triton.cdiv(tiles, min(wanted, SPLITS))
    return triton.cdiv(tiles, share), share * blocks.cols
