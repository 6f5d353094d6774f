"""CUDA kernels: one program per block of rows, no atomics, nothing of size N x T in memory.

Both kernels walk over all columns. `log_sum_exp` keeps a running maximum; `pull` needs none, as
`exp(s_ij - lse_i)` cannot overflow. Similarities are in bits: `s_ij / ln 2`. Products take operands
of `product_dtype` and accumulate in fp32 (fp64 in fp64).
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from unmuddle.supcon.backends import shared
from unmuddle.supcon.positives import Classes
from unmuddle.supcon.problem import Over, Problem

OVER: dict[Over, int] = {"all": 0, "negatives": 1, "positives": 2}


@triton.jit
def _similarities(
    z, rows, cols, row_stop, col_stop, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    s = tl.full((BLOCK_M, BLOCK_N), 0.0, ACCUMULATE)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        in_dim = d[None, :] < D
        x = tl.load(z + rows[:, None] * D + d[None, :], (rows[:, None] < row_stop) & in_dim, 0.0)
        k = tl.load(z + cols[:, None] * D + d[None, :], (cols[:, None] < col_stop) & in_dim, 0.0)
        s = tl.dot(x, tl.trans(k), s, input_precision=PRECISION, out_dtype=ACCUMULATE)
    return s * scale


@triton.jit
def _is_term(rows, cols, row_group, col_group, OVER: tl.constexpr):
    takes_part = (row_group[:, None] >= 0) & (col_group[None, :] >= 0)
    is_pair = takes_part & (rows[:, None] != cols[None, :])
    is_same = row_group[:, None] == col_group[None, :]
    if OVER == 1:
        is_pair = is_pair & (is_same == 0)
    elif OVER == 2:
        is_pair = is_pair & is_same
    return is_pair


@triton.jit
def log_sum_exp_kernel(
    z, group, scale_pointer, log_weight, out, row_start, row_stop, total,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OVER: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """`out_i = log2 sum_j exp2 s_ij` for rows of a block."""
    rows = row_start + tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_group = tl.load(group + rows, rows < row_stop, -1)
    scale = tl.load(scale_pointer)
    m = tl.full((BLOCK_M,), float("-inf"), ACCUMULATE)
    total_exp = tl.full((BLOCK_M,), 0.0, ACCUMULATE)
    for start in range(0, total, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N).to(tl.int64)
        col_group = tl.load(group + cols, cols < total, -1)
        s = _similarities(
            z, rows, cols, row_stop, total, scale, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
            ACCUMULATE,
        )  # fmt: skip
        s = tl.where(_is_term(rows, cols, row_group, col_group, OVER), s, float("-inf"))
        if WEIGHTED:
            s += tl.load(log_weight + cols, cols < total, 0.0)[None, :]
        larger = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total_exp = total_exp * tl.exp2(m - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)
        m = larger
    total_exp = tl.where(m == float("-inf"), 1.0, total_exp)
    tl.store(out + rows, m + tl.log2(total_exp), rows < row_stop)


@triton.jit
def pull_kernel(
    z, group, scale_pointer, log_weight, g, lse, a, out, row_start, row_stop, col_start, col_stop,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr, OVER: tl.constexpr, WEIGHTED: tl.constexpr, ATTRACTS: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """`out_i = sum_j (g_i v_j e_ij + g_j v_i e_ji - w_ij (a_i + a_j)) z_j`.

    Here `e_ij = exp2(s_ij - lse_i)`, and v are the weights of the denominator.
    """
    rows = row_start + tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    out_d = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_rows = rows < row_stop
    row_group = tl.load(group + rows, in_rows, -1)
    row_g = tl.load(g + rows, in_rows, 0.0)
    row_lse = tl.load(lse + rows, in_rows, float("inf"))
    scale = tl.load(scale_pointer)
    accumulator = tl.full((BLOCK_M, BLOCK_OUT), 0.0, ACCUMULATE)
    for start in range(col_start, col_stop, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N).to(tl.int64)
        in_cols = cols < col_stop
        col_group = tl.load(group + cols, in_cols, -1)
        col_g = tl.load(g + cols, in_cols, 0.0)
        col_lse = tl.load(lse + cols, in_cols, float("inf"))
        s = _similarities(
            z, rows, cols, row_stop, col_stop, scale, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
            ACCUMULATE,
        )  # fmt: skip
        s = tl.where(_is_term(rows, cols, row_group, col_group, OVER), s, float("-inf"))
        of_row, of_col = s - row_lse[:, None], s - col_lse[None, :]
        if WEIGHTED:
            of_row += tl.load(log_weight + cols, in_cols, 0.0)[None, :]
            of_col += tl.load(log_weight + rows, in_rows, 0.0)[:, None]
        w = tl.exp2(of_row) * row_g[:, None] + tl.exp2(of_col) * col_g[None, :]
        if ATTRACTS:
            is_positive = _is_term(rows, cols, row_group, col_group, 2)
            row_a = tl.load(a + rows, in_rows, 0.0)
            col_a = tl.load(a + cols, in_cols, 0.0)
            w -= tl.where(is_positive, row_a[:, None] + col_a[None, :], 0.0)
        pointer = z + cols[:, None] * D + out_d[None, :]
        k = tl.load(pointer, in_cols[:, None] & (out_d[None, :] < D), 0.0)
        accumulator = tl.dot(
            w.to(k.dtype), k, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATE
        )
    pointer = out + rows[:, None] * D + out_d[None, :]
    tl.store(pointer, accumulator, in_rows[:, None] & (out_d[None, :] < D))


class Blocks(NamedTuple):
    """Sizes of what a program holds at once."""

    rows: int
    cols: int
    dim: int
    out: int
    warps: int
    stages: int


def choose_blocks(dim: int, dtype: torch.dtype, longest: int = 128) -> Blocks:
    """Return the fastest sizes tried that are right and spill no register up to D = `longest`.

    64 rows of fp32 go to Hopper's warp groups of four. With eight warps Triton 3.6 made wrong
    gradients of them (three TF32 products); 16 rows take the instructions of older cards.
    """
    out = min(max(triton.next_power_of_2(dim), 16), 128)
    if dtype == torch.float64:
        return Blocks(rows=32, cols=32, dim=16, out=min(out, 32), warps=4, stages=2)
    if dtype == torch.float32:
        return Blocks(rows=16, cols=64, dim=min(out, 32), out=out, warps=4, stages=2)
    is_even = dim < 64 or (dim % 64 == 0 and dim <= longest)
    rows = 64 if is_even else 32  # long and ragged rows take more registers
    return Blocks(rows=rows, cols=32, dim=min(out, 64), out=out, warps=4, stages=2)


IS_INTERPRETED = not isinstance(log_sum_exp_kernel, triton.JITFunction)  # on a CPU, for tests


def operand_type(problem: Problem) -> torch.dtype:
    """Return the type of the operands of products."""
    dtype = problem.options.product_dtype
    # The interpreter multiplies bfloat16 as if it were integers.
    return torch.float32 if IS_INTERPRETED and dtype == torch.bfloat16 else dtype


def log_sum_exp(
    z: Tensor, problem: Problem, over: Over, cache: Tensor, *, is_filled: bool
) -> Tensor:
    """Return `(n,)` `log sum_j a_ij exp s_ij` of our anchors; `cache` is not used."""
    x, group, scale, log_weight = _operands(z, problem, over)
    first, last = problem.rows.start, problem.rows.stop
    blocks = choose_blocks(x.shape[1], x.dtype)
    out = z.new_empty(problem.options.anchors)
    if last > first:
        log_sum_exp_kernel[(triton.cdiv(last - first, blocks.rows),)](
            x, group, scale, scale if log_weight is None else log_weight, out, first, last, len(z),
            D=x.shape[1], BLOCK_M=blocks.rows, BLOCK_N=blocks.cols, BLOCK_D=blocks.dim,
            OVER=OVER[over], WEIGHTED=log_weight is not None,
            PRECISION=precision(x.dtype), ACCUMULATE=accumulate(x.dtype),
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return out[problem.rows] * math.log(2)


def pull(
    z: Tensor, problem: Problem, over: Over, g: Tensor, lse: Tensor, a: Tensor | None, cache: Tensor
) -> Tensor:
    """Return the gradient `(T, D)` of `sum_i g_i lse_i - a_i s_i(positives)` in z, times τ."""
    x, group, scale, log_weight = _operands(z, problem, over)
    total, anchors, ours = len(z), problem.options.anchors, problem.rows
    if anchors == 0:
        return torch.zeros_like(z)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf) / math.log(2)
    lse = F.pad(lse, (0, total - anchors), value=torch.inf)
    in_kernel = a if isinstance(problem.positives, Classes) else None
    # Half precision holds weights near 1, not near 1 / N.
    unit = g.abs().amax().clamp(min=torch.finfo(g.dtype).tiny)
    blocks = choose_blocks(x.shape[1], x.dtype)
    dz = torch.zeros_like(z)

    def launch(rows: slice, cols: slice, anchors_that_count: slice) -> None:
        if rows.stop <= rows.start or cols.stop <= cols.start:
            return
        weights = [
            _only(t / unit, anchors_that_count, total) for t in (g, in_kernel) if t is not None
        ]
        grid = triton.cdiv(rows.stop - rows.start, blocks.rows), triton.cdiv(x.shape[1], blocks.out)
        pull_kernel[grid](
            x, group, scale, scale if log_weight is None else log_weight,
            weights[0], lse, weights[-1], dz,
            rows.start, rows.stop, cols.start, cols.stop,
            D=x.shape[1], BLOCK_M=blocks.rows, BLOCK_N=blocks.cols, BLOCK_D=blocks.dim,
            BLOCK_OUT=blocks.out, OVER=OVER[over], WEIGHTED=log_weight is not None,
            ATTRACTS=in_kernel is not None,
            PRECISION=precision(x.dtype), ACCUMULATE=accumulate(x.dtype),
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip

    launch(ours, slice(0, total), slice(0, anchors))
    if problem.options.keys_need_grad:
        launch(slice(anchors, total), ours, ours)
    dz.mul_(unit)
    if a is not None and in_kernel is None:
        dz.sub_(shared.attraction_gradient(z, problem, a))
    return dz


def _operands(
    z: Tensor, problem: Problem, over: Over
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return rows, `(T,)` classes (-1: takes no part), `1 / (τ ln 2)`, `(T,)` log2 of weights."""
    z = z.to(operand_type(problem)).contiguous()
    if isinstance(problem.positives, Classes):
        group = problem.positives.group().to(torch.int32)
    elif over == "all":
        group = torch.zeros(len(z), dtype=torch.int32, device=z.device)
    else:
        raise ValueError(
            "impl: 'triton' takes positives='in' and denominator='negatives' with integer labels "
            "only"
        )
    if problem.included is not None:
        group = group.masked_fill(problem.included == 0, -1)
    v = None if over == "positives" else problem.denominator_weight
    # Filled on the device: a copy from the host would wait.
    scale = z.new_full((), 1 / math.log(2), dtype=problem.options.dtype) * problem.inv_temperature
    return z, group, scale, None if v is None else v.log2().contiguous()


def _only(weights: Tensor, rows: slice, total: int) -> Tensor:
    """Return `(T,)` weights: those of some anchors, 0 elsewhere."""
    out = weights.new_zeros(total)
    out[rows] = weights[rows]
    return out


def precision(dtype: torch.dtype) -> str:
    """Return how fp32 operands are multiplied: as three TF32 products, nearly as exact as fp32."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "medium":
        return "tf32x3"
    return "tf32" if dtype == torch.float32 else "ieee"


def accumulate(dtype: torch.dtype) -> tl.dtype:
    """Return the type in which products are summed."""
    return tl.float64 if dtype == torch.float64 else tl.float32


forward = partial(shared.forward, log_sum_exp=log_sum_exp, cache_size=lambda n, total: 0)
new_residuals = partial(shared.new_residuals, cache_size=lambda n, total: 0)
backward = partial(shared.backward, pull=pull)
