"""The three steps of ARM as pure functions, and the sizes they give."""

from torch import Tensor
from torch.nn.functional import pixel_shuffle

UPSCALES = (16, 8, 4, 2)


def arrange(x: Tensor, upscale: int) -> Tensor:
    """Lay `r²` channels out as an `r x r` neighbourhood: `(N, C, H, W)` -> `(N, C/r², H·r, W·r)`.

    Raises:
        ValueError: `C` is not a multiple of `r²`.

    Examples:
        >>> import torch
        >>> arrange(torch.zeros(1, 512, 7, 7), 16).shape
        torch.Size([1, 2, 112, 112])
    """
    if x.ndim != 4 or x.shape[1] % upscale**2:
        raise ValueError(
            f"x: expected shape (N, C, H, W) with C a multiple of upscale² = {upscale**2}, "
            f"got {tuple(x.shape)}"
        )
    return pixel_shuffle(x, upscale)


def de_albino(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve every channel with one shared kernel, without padding.

    `y[n, c, i, j] = sum_{a, b < k} weight[a, b] · x[n, c, i·s + a, j·s + b]`

    Without padding a border pixel is visited less often than a central one, so the features that
    padding has eroded weigh less. When the stride `s` divides the kernel size `k`, as in ARM, the
    map is cut into `s x s` cells; one matrix product takes every cell to its inner product with
    each of the `(k/s)²` sub-kernels, and `(k/s)²` shifted sums finish: the same value with
    `(k/s)²` times fewer reads.

    Args:
        x: `(N, C, H, W)`.
        weight: `(k, k)`.
        stride: s, a divisor of k.

    Returns:
        `(N, C, (H - k) // s + 1, (W - k) // s + 1)`.

    Raises:
        ValueError: the shapes do not fit, or the map is smaller than the kernel.

    Examples:
        >>> import torch
        >>> de_albino(torch.ones(1, 2, 112, 112), torch.ones(32, 32), 8).shape
        torch.Size([1, 2, 11, 11])
    """
    k = weight.shape[0]
    if weight.shape != (k, k) or k % stride:
        raise ValueError(
            f"weight: expected shape (k, k) with k a multiple of stride = {stride}, "
            f"got {tuple(weight.shape)}"
        )
    if x.ndim != 4 or min(x.shape[2:]) < k:
        raise ValueError(
            f"x: expected shape (N, C, H, W) with H, W >= {k}, the kernel size, "
            f"got {tuple(x.shape)}"
        )
    n, c, height, width = x.shape
    parts = k // stride
    out_h, out_w = (height - k) // stride + 1, (width - k) // stride + 1
    cells_h, cells_w = out_h + parts - 1, out_w + parts - 1

    cells = (
        x[:, :, : cells_h * stride, : cells_w * stride]
        .reshape(n, c, cells_h, stride, cells_w, stride)
        .transpose(3, 4)
        .reshape(n, c, cells_h, cells_w, stride * stride)
    )
    sub_kernels = weight.reshape(parts, stride, parts, stride).transpose(1, 2)
    products = cells @ sub_kernels.reshape(parts * parts, stride * stride).T
    shifted = [
        products[:, :, a : a + out_h, b : b + out_w, a * parts + b]
        for a in range(parts)
        for b in range(parts)
    ]
    total = shifted[0]
    for part in shifted[1:]:
        total = total + part
    return total


def affinity(x: Tensor, alpha: Tensor, common: Tensor | None = None) -> Tensor:
    """Add what faces have in common to the mean over channels.

    `y[n] = mean_c x[n, c] + alpha · common`

    Args:
        x: `(N, C, H, W)`.
        alpha: scalar.
        common: `(H, W)` map; `None` takes this batch's own, the mean over batch and channels.

    Returns:
        `(N, H, W)`.
    """
    own = x.mean(1)
    return own + alpha * (own.mean(0) if common is None else common)


def choose_upscale(channels: int) -> int:
    """The largest of 16, 8, 4, 2 whose square divides `channels`, else 2.

    Examples:
        >>> choose_upscale(512), choose_upscale(1280), choose_upscale(440)
        (16, 16, 2)
    """
    return next((r for r in UPSCALES if channels % r**2 == 0), 2)


def output_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns that ARM makes of an `(H, W)` map, whatever its upscale: `2·H - 3`.

    Raises:
        ValueError: the map is smaller than 2 x 2.

    Examples:
        >>> output_size(7, 7)
        (11, 11)
    """
    if min(height, width) < 2:
        raise ValueError(f"input_size: expected at least (2, 2), got ({height}, {width})")
    return 2 * height - 3, 2 * width - 3
