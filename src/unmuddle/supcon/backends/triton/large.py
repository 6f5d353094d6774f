"""Kernels for large batches in half precision: rows are sorted by class, each pair computed once.

Sums over positives are computed from class sums, outside the loops over pairs. The loops need no
labels, and mask only tiles on the diagonal and tiles with ignored or padded rows.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from unmuddle.supcon.backends.triton.rows import (
    accumulate,
    allocate,
    attraction_kernel,
    finish,
    load_tile,
    losses_kernel,
    operand_type,
    positives_kernel,
    prepare,
    scaled,
)
from unmuddle.supcon.positives import Classes
from unmuddle.supcon.problem import Losses, Problem, Residuals

CHUNK = 128  # number of dimensions whose class sums are held at once
WHOLE = 256  # maximum number of dimensions for which a program holds whole rows
PANEL = 8192  # number of rows and columns whose weights are held at once
ADDS_TO_FP32 = "dtype_out" in torch.ops.aten.addmm.overloads()  # torch 2.8


@triton.jit
def _exps(s, rows, cols, is_inside, count):
    """Return `exp2 s_ij`, or 0 for a row with itself and for ignored rows."""
    if not is_inside:
        is_pair = (rows[:, None] != cols[None, :]) & (rows[:, None] < count)
        s = tl.where(is_pair & (cols[None, :] < count), s, float("-inf"))
    return tl.exp2(s)


@triton.jit
def sums_kernel(
    z, planes, valid, blocks, padded,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """Sum `exp2 s_ij` over all other rows, computing each pair once.

    The blocks of rows form a circle, and each block is compared with the next half of the circle.
    The sums of its own rows are stored in plane 0. The sums of the rows it is compared with are
    stored in one plane per distance. If the number of blocks is even, opposite blocks are compared
    twice, and each comparison stores only the sums of the block's own rows.
    """
    own, count = tl.program_id(0), tl.load(valid).to(tl.int32)
    cols = own * BLOCK + tl.arange(0, BLOCK)
    k = tl.trans(load_tile(z, own * BLOCK, 0, WIDTH, BLOCK, WIDTH))
    exps = tl.zeros((STREAMED, BLOCK), tl.float32)
    for step in range((blocks // 2 + 1) * (BLOCK // STREAMED)):
        distance = step // (BLOCK // STREAMED)
        block = own + distance
        block = tl.where(block >= blocks, block - blocks, block)
        first = block * BLOCK + (step - distance * (BLOCK // STREAMED)) * STREAMED
        rows = first + tl.arange(0, STREAMED)
        is_inside = (distance > 0) & ((tl.maximum(block, own) + 1) * BLOCK <= count)
        e = _exps(
            tl.dot(load_tile(z, first, 0, WIDTH, STREAMED, WIDTH), k), rows, cols, is_inside, count
        )
        exps += e
        if (distance > 0) & (2 * distance < blocks):
            tl.store(planes + distance * padded + rows, tl.sum(e, 1))
    tl.store(planes + cols, tl.sum(exps, 0))


@triton.jit
def long_sums_kernel(
    z, planes, valid, blocks, padded,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Variant of `sums_kernel` for rows too long to hold: one program per block and distance.

    The first planes hold the sums of the block's own rows, one plane per distance. The next planes
    hold the sums of the rows it is compared with.
    """
    own, distance, count = tl.program_id(0), tl.program_id(1), tl.load(valid).to(tl.int32)
    block = own + distance
    block = tl.where(block >= blocks, block - blocks, block)
    s = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        x = load_tile(z, block * BLOCK, start, WIDTH, BLOCK, BLOCK_D)
        s = tl.dot(x, tl.trans(load_tile(z, own * BLOCK, start, WIDTH, BLOCK, BLOCK_D)), s)
    rows, cols = block * BLOCK + tl.arange(0, BLOCK), own * BLOCK + tl.arange(0, BLOCK)
    is_inside = (distance > 0) & ((tl.maximum(block, own) + 1) * BLOCK <= count)
    e = _exps(s, rows, cols, is_inside, count)
    tl.store(planes + distance * padded + cols, tl.sum(e, 0))
    if (distance > 0) & (2 * distance < blocks):
        tl.store(planes + (blocks // 2 + distance) * padded + rows, tl.sum(e, 1))


@triton.jit
def rows_kernel(
    z, u, dz, valid, padded,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute `dz_i = sum_j (u_i + u_j) exp2 s_ij z_j`."""
    own, count = tl.program_id(0) * BLOCK_M, tl.load(valid).to(tl.int32)
    rows = own + tl.arange(0, BLOCK_M)
    x = load_tile(z, own, 0, WIDTH, BLOCK_M, WIDTH)
    row_u = tl.load(u + rows)[:, None]
    accumulator = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for first in range(0, padded, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        k = load_tile(z, first, 0, WIDTH, BLOCK_N, WIDTH)
        w = tl.exp2(tl.dot(x, tl.trans(k))) * (row_u + tl.load(u + cols)[None, :])
        if (first // BLOCK_M == tl.program_id(0)) | (first + BLOCK_N > count):
            w = tl.where((rows[:, None] != cols[None, :]) & (cols[None, :] < count), w, 0.0)
        accumulator = tl.dot(w.to(k.dtype), k, accumulator)
    pointer = dz + own.to(tl.int64) * WIDTH + tl.arange(0, BLOCK_M)[:, None] * WIDTH
    tl.store(pointer + tl.arange(0, WIDTH)[None, :], accumulator)


@triton.jit
def weights_kernel(
    z, u, weights, valid, first_row, first_col, columns,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute `(u_i + u_j) exp2 s_ij` for a panel of rows and columns."""
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    rows = first_row + row + tl.arange(0, BLOCK_M)
    cols = first_col + col + tl.arange(0, BLOCK_N)
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        x = load_tile(z, first_row + row, start, WIDTH, BLOCK_M, BLOCK_D)
        s = tl.dot(x, tl.trans(load_tile(z, first_col + col, start, WIDTH, BLOCK_N, BLOCK_D)), s)
    w = tl.exp2(s) * (tl.load(u + rows)[:, None] + tl.load(u + cols)[None, :])
    count = tl.load(valid).to(tl.int32)
    is_pair = (rows[:, None] != cols[None, :]) & (rows[:, None] < count) & (cols[None, :] < count)
    pointer = weights + row.to(tl.int64) * columns + tl.arange(0, BLOCK_M)[:, None] * columns
    pointer += col + tl.arange(0, BLOCK_N)[None, :]
    tl.store(pointer, tl.where(is_pair, w, 0.0).to(weights.dtype.element_ty))


class Tiling(NamedTuple):
    """Compile-time sizes of the kernels over pairs.

    Attributes:
        width: padded number of dimensions.
        sums: sizes of `sums_kernel`, or of `long_sums_kernel` for more than `WHOLE` dimensions.
        gradient: sizes of `rows_kernel`, or of `weights_kernel` for more than `WHOLE` dimensions.
    """

    width: int
    sums: dict[str, int]
    gradient: dict[str, int]


def choose_tiling(dim: int) -> Tiling:
    """Return the sizes that make the best use of a GPU without spilling registers."""
    if dim <= WHOLE:
        width = max(triton.next_power_of_2(dim), 16)
        sums = {"BLOCK": 128, "STREAMED": 64, "num_warps": 4, "num_stages": 2}
        gradient = {"BLOCK_M": 128, "BLOCK_N": 128 if width <= 128 else 64}
        return Tiling(width, sums, gradient | {"num_warps": 8, "num_stages": 2})
    panel = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
    sums = {"BLOCK": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
    return Tiling(triton.cdiv(dim, CHUNK) * CHUNK, sums, panel)


def pad(n: int, tiling: Tiling) -> int:
    """Return n, rounded up to a whole number of blocks."""
    block = max(tiling.sums["BLOCK"], tiling.gradient["BLOCK_N"])
    return triton.cdiv(n, block) * block


def new_residuals(x: Tensor, problem: Problem) -> Residuals:
    """Allocate the residuals for the backward pass.

    `places` holds the order of the rows, the start and the end of each row's class, and the number
    of included rows.
    """
    tiling = choose_tiling(x.shape[1])
    padded = pad(len(x), tiling)
    return allocate(x, padded, tiling.width, operand_type(problem), problem, places=3 * len(x) + 1)


def forward(x: Tensor, problem: Problem) -> Losses:
    """Return the losses of all anchors."""
    residuals, total = new_residuals(x, problem), len(x)
    z, norm, kept, places = residuals
    (padded, width), tiling = z.shape, choose_tiling(x.shape[1]).sums
    order, begin, end, valid = arrange(problem, places)
    prepare(x, order, valid, z, norm, problem)
    blocks = padded // tiling["BLOCK"]
    others = (blocks - 1) // 2  # distances at which sums of the compared rows are stored
    if width <= WHOLE:
        planes = x.new_empty(1 + others, padded, dtype=torch.float32)
        sums_kernel[(blocks,)](z, planes, valid, blocks, padded, WIDTH=width, **tiling)
    else:
        reach = blocks // 2 + 1
        planes = x.new_empty(reach + others, padded, dtype=torch.float32)
        long_sums_kernel[(blocks, reach)](z, planes, valid, blocks, padded, WIDTH=width, **tiling)
    positives = x.new_empty(2, total, dtype=torch.float32)
    chunk = min(width, CHUNK)
    for offset in range(0, width, chunk):
        prefix = z[:total, offset : offset + chunk].cumsum(0, dtype=torch.float64)
        attraction_kernel[(triton.cdiv(total, 16),)](
            z, prefix, begin, end, valid, positives, total, offset,
            WIDTH=width, CHUNK=chunk, BLOCK_M=16,
        )  # fmt: skip
    each, has_loss = x.new_empty(2, total, dtype=torch.float32)
    losses_kernel[(triton.cdiv(total, 256),)](
        planes, len(planes), padded, planes, planes, positives, 1, 0, total,
        order, each, has_loss, kept, total, BLOCK=256, ORDERED=True,
        BOUNDED=True, INSIDE=False, ACCUMULATE=accumulate(torch.float32),
    )  # fmt: skip
    return Losses(each, has_loss, residuals)


def backward(
    x: Tensor, problem: Problem, residuals: Residuals, grad: Tensor | float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of `sum_i grad_i L_i` with respect to x; τ is a number."""
    assert isinstance(grad, Tensor)
    (z, norm, kept, places), total = residuals, len(x)
    (padded, width), tiling = z.shape, choose_tiling(x.shape[1]).gradient
    order, begin, end, valid = split(places)
    grad, unit = scaled(grad, z.dtype)
    u, a = F.pad(kept * grad[order], (0, padded - total))
    if width <= WHOLE:
        dz = x.new_empty(padded, width, dtype=torch.float32)
        rows_kernel[(padded // tiling["BLOCK_M"],)](z, u, dz, valid, padded, WIDTH=width, **tiling)
    else:
        dz = x.new_zeros(padded, width, dtype=torch.float32)
        add_by_panels(z, u, dz, valid, tiling)
    chunk = min(width, CHUNK)
    for offset in range(0, width, chunk):
        part = z[:total, offset : offset + chunk]
        prefix = part.cumsum(0, dtype=torch.float64)
        weighted = (part * a[:total, None]).cumsum(0, dtype=torch.float64)
        positives_kernel[(padded // 16,)](
            z, prefix, weighted, begin, end, valid, a, dz, offset,
            WIDTH=width, CHUNK=chunk, BLOCK_M=16,
        )  # fmt: skip
    return finish(x, order, norm, dz[None], problem, unit, total)


def add_by_panels(z: Tensor, u: Tensor, dz: Tensor, valid: Tensor, tiling: dict[str, int]) -> None:
    """Add `sum_j (u_i + u_j) exp2 s_ij z_j` to dz, computing each pair of panels once."""
    padded, width = z.shape
    scratch = z.new_empty(min(PANEL, padded) ** 2)
    panels = [slice(start, min(start + PANEL, padded)) for start in range(0, padded, PANEL)]
    for rows, cols in itertools.combinations_with_replacement(panels, 2):
        height, columns = rows.stop - rows.start, cols.stop - cols.start
        weights = scratch[: height * columns].view(height, columns)
        weights_kernel[(height // tiling["BLOCK_M"], columns // tiling["BLOCK_N"])](
            z, u, weights, valid, rows.start, cols.start, columns, WIDTH=width, **tiling
        )
        add_product(dz[rows], weights, z[cols])
        if rows != cols:
            add_product(dz[cols], weights.T, z[rows])


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `a @ b` in half precision to an fp32 matrix."""
    if out.is_cuda and ADDS_TO_FP32:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


def arrange(problem: Problem, places: Tensor) -> tuple[Tensor, ...]:
    """Fill `places`: the order of the rows by class, the start and end of each class, the count.

    Ignored rows come last and are not counted.
    """
    assert isinstance(problem.positives, Classes)
    labels, ignored = problem.positives.labels, problem.options.ignore_index
    order, begin, end, valid = split(places)
    last = torch.iinfo(torch.int64).max  # unused, since labels above `ignored` are decremented
    key = torch.where(labels > ignored, labels - 1, labels).masked_fill_(labels == ignored, last)
    key, order[:] = key.sort(stable=True)
    torch.searchsorted(key, key, out=begin)
    torch.searchsorted(key, key, right=True, out=end)
    if problem.included is None:
        valid.fill_(len(labels))
    else:
        torch.sum(problem.included, 0, keepdim=True, dtype=torch.int64, out=valid)
    return order, begin, end, valid


def split(places: Tensor) -> tuple[Tensor, ...]:
    """Split `places` into order, starts, ends, and the number of included rows `(1,)`."""
    return places.tensor_split([(len(places) - 1) // 3 * i for i in (1, 2, 3)])
