"""Every anchor against all rows, labels compared pair by pair: five launches, few operations.

The columns are split among programs, whose partial results lie in planes of their own.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmuddle.supcon.backends.triton.general import (
    Blocks,
    choose_blocks,
    operand_type,
    precision,
)
from unmuddle.supcon.backends.triton.rows import (
    allocate,
    finish,
    load_tile,
    losses_kernel,
    prepare,
    scaled,
)
from unmuddle.supcon.positives import Classes
from unmuddle.supcon.problem import MAX_KERNEL_DIM, Losses, Problem, Residuals

PROGRAMS = 512  # about four for each multiprocessor of a large GPU
SPLITS = 8


@triton.jit
def _similarities(
    z, row, col,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    s = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        x = load_tile(z, row, start, WIDTH, BLOCK_M, BLOCK_D)
        k = load_tile(z, col, start, WIDTH, BLOCK_N, BLOCK_D)
        s = tl.dot(x, tl.trans(k), s, input_precision=PRECISION)
    return s


@triton.jit
def sums_kernel(
    z, labels, planes, total, padded, columns, ignore_index,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over some columns: of `exp2 s_ij`, of `s_ij` of the positives, of positives."""
    row = tl.program_id(0) * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    row_label = tl.load(labels + rows, rows < total, ignore_index)[:, None]
    exps = tl.zeros((BLOCK_M,), tl.float32)
    attraction = tl.zeros((BLOCK_M,), tl.float32)
    count = tl.zeros((BLOCK_M,), tl.float32)
    first = tl.program_id(1) * columns
    for start in range(first, tl.minimum(first + columns, padded), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        col_label = tl.load(labels + cols, cols < total, ignore_index)[None, :]
        s = _similarities(z, row, start, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        is_pair = (rows[:, None] != cols[None, :]) & (col_label != ignore_index)
        is_positive = is_pair & (row_label == col_label)
        exps += tl.sum(tl.exp2(s) * is_pair.to(tl.float32), 1)  # a product, so that NaN stays
        attraction += tl.sum(tl.where(is_positive, s, 0.0), 1)
        count += tl.sum(is_positive.to(tl.float32), 1)
    plane = planes + tl.program_id(1).to(tl.int64) * 3 * padded + rows
    tl.store(plane, exps)
    tl.store(plane + padded, attraction)
    tl.store(plane + 2 * padded, count)


@triton.jit
def gradient_kernel(
    z, labels, g, inverse, dz, total, padded, columns, ignore_index,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`dz_i = sum_j ((u_i + u_j) exp2 s_ij - w_ij (a_i + a_j)) z_j` over some columns.

    Here `u = g / sum exp2 s` and `a = g / count`.
    """
    row = tl.program_id(0) * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    out = tl.program_id(2) * BLOCK_OUT
    row_label = tl.load(labels + rows, rows < total, ignore_index)[:, None]
    row_g = tl.load(g + rows, rows < total, 0.0)
    row_u = (row_g * tl.load(inverse + rows, rows < total, 0.0))[:, None]
    row_a = (row_g * tl.load(inverse + total + rows, rows < total, 0.0))[:, None]
    accumulator = tl.full((BLOCK_M, BLOCK_OUT), 0.0, tl.float32)
    first = tl.program_id(1) * columns
    for start in range(first, tl.minimum(first + columns, padded), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        in_cols = cols < total
        col_label = tl.load(labels + cols, in_cols, ignore_index)[None, :]
        col_g = tl.load(g + cols, in_cols, 0.0)
        col_u = (col_g * tl.load(inverse + cols, in_cols, 0.0))[None, :]
        col_a = (col_g * tl.load(inverse + total + cols, in_cols, 0.0))[None, :]
        s = _similarities(z, row, start, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        is_pair = (rows[:, None] != cols[None, :]) & (row_label != ignore_index)
        is_pair = is_pair & (col_label != ignore_index)
        w = tl.exp2(s) * (row_u + col_u) - tl.where(row_label == col_label, row_a + col_a, 0.0)
        w = tl.where(is_pair, w, 0.0)
        k = load_tile(z, start, out, WIDTH, BLOCK_N, BLOCK_OUT)
        accumulator = tl.dot(w.to(k.dtype), k, accumulator, input_precision=PRECISION)
    base = dz + (tl.program_id(1).to(tl.int64) * padded + row) * WIDTH + out
    tl.store(
        base + (tl.arange(0, BLOCK_M)[:, None] * WIDTH + tl.arange(0, BLOCK_OUT)[None, :]),
        accumulator,
    )


class Layout(NamedTuple):
    """Padded rows and dimensions, blocks, and what the kernels are compiled for."""

    padded: int
    width: int
    blocks: Blocks
    tiling: dict[str, Any]


def choose_layout(n: int, dim: int, dtype: torch.dtype) -> Layout:
    """Return the sizes for n rows."""
    blocks = choose_blocks(dim, dtype, MAX_KERNEL_DIM)
    size, width = max(blocks.rows, blocks.cols), triton.cdiv(dim, blocks.out) * blocks.out
    tiling = {
        "WIDTH": width, "BLOCK_M": blocks.rows, "BLOCK_N": blocks.cols, "BLOCK_D": blocks.dim,
        "PRECISION": precision(dtype), "num_warps": blocks.warps, "num_stages": blocks.stages,
    }  # fmt: skip
    return Layout(triton.cdiv(n, size) * size, width, blocks, tiling)


def new_residuals(x: Tensor, problem: Problem) -> Residuals:
    """Return memory for what the backward pass needs."""
    dtype = operand_type(problem)
    padded, width, *_ = choose_layout(*x.shape, dtype)
    return allocate(x, padded, width, dtype, places=0)


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of all anchors."""
    residuals, labels, total = new_residuals(x, problem), _labels(problem), len(x)
    z, norm, inverse, order = residuals
    padded, _, blocks, tiling = choose_layout(*x.shape, z.dtype)
    prepare(x, order, order, z, norm, problem)
    splits, columns = _split(padded, blocks, 1)
    planes = x.new_empty(splits, 3, padded, dtype=torch.float32)
    sums_kernel[(padded // blocks.rows, splits)](
        z, labels, planes, total, padded, columns, problem.options.ignore_index, **tiling
    )
    each, has_loss = x.new_empty(2, total, dtype=torch.float32)
    losses_kernel[(triton.cdiv(total, 256),)](
        planes, splits, 3 * padded, planes[:, 1], splits, 3 * padded, padded,
        order, each, has_loss, inverse, total, BLOCK=256, ORDERED=False,
    )  # fmt: skip
    return Losses(each, has_loss, residuals)


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
) -> tuple[Tensor, None]:
    """Return the gradient of `sum_i grad_i L_i` in x."""
    assert isinstance(grad, Tensor)
    (z, norm, inverse, order), total = residuals, len(x)
    padded, width, blocks, tiling = choose_layout(*x.shape, z.dtype)
    g, unit = scaled(grad, z.dtype)
    splits, columns = _split(padded, blocks, width // blocks.out)
    dz = x.new_empty(splits, padded, width, dtype=torch.float32)
    gradient_kernel[(padded // blocks.rows, splits, width // blocks.out)](
        z, _labels(problem), g, inverse, dz, total, padded, columns, problem.options.ignore_index,
        BLOCK_OUT=blocks.out, **tiling,
    )  # fmt: skip
    return finish(x, order, norm, dz, problem, unit), None


def _labels(problem: Problem) -> Tensor:
    assert isinstance(problem.positives, Classes)
    return problem.positives.labels.contiguous()


def _split(padded: int, blocks: Blocks, others: int) -> tuple[int, int]:
    """Return among how many programs the columns of a block of rows are split, and their share."""
    tiles = padded // blocks.cols
    wanted = triton.cdiv(PROGRAMS, padded // blocks.rows * others)
    share = triton.cdiv(tiles, min(wanted, SPLITS))
    return triton.cdiv(tiles, share), share * blocks.cols
