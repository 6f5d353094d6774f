"""Pure functions for the steps of the published ARM, and for sizes and their validation.

`amend` computes the first two steps in one matrix product.
"""

from operator import index

import torch
from torch import Tensor
from torch.nn.functional import conv2d, fold, pixel_shuffle, unfold

UPSCALES = (16, 8, 4, 2)
WINDOW = 5  # side of the square of output pixels that one pixel of the map contributes to


def arrange(x: Tensor, upscale: int) -> Tensor:
    """Rearrange `r²` channels into `r x r` pixels: `(N, C, H, W)` -> `(N, C/r², H·r, W·r)`.

    Raises:
        ValueError: `C` is not a multiple of `r²`.

    Examples:
        >>> import torch
        >>> arrange(torch.zeros(1, 512, 7, 7), 16).shape
        torch.Size([1, 2, 112, 112])
    """
    _check_map(x, upscale)
    return pixel_shuffle(x, upscale)


def de_albino(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve every channel with one shared kernel, without padding.

    `y[n, c, i, j] = sum_{a, b < k} weight[a, b] · x[n, c, i·s + a, j·s + b]`

    Without padding, the kernel visits a border pixel less often than a central one. Features that
    the padding of earlier layers has eroded therefore have less weight.

    Args:
        x: `(N, C, H, W)`.
        weight: `(k, k)`.
        stride: s.

    Returns:
        `(N, C, (H - k) // s + 1, (W - k) // s + 1)`.

    Raises:
        ValueError: a shape is invalid, or the map is smaller than the kernel.

    Examples:
        >>> import torch
        >>> de_albino(torch.ones(1, 2, 112, 112), torch.ones(32, 32), 8).shape
        torch.Size([1, 2, 11, 11])
    """
    k = weight.shape[0]
    if weight.shape != (k, k):
        raise ValueError(f"weight: expected shape (k, k), got {tuple(weight.shape)}")
    if x.ndim != 4 or min(x.shape[2:]) < k:
        raise ValueError(
            f"x: expected shape (N, C, H, W) with H, W >= {k}, the kernel size, "
            f"got {tuple(x.shape)}"
        )
    y = conv2d(x.flatten(0, 1).unsqueeze(1), weight[None, None], stride=stride)
    return y.squeeze(1).unflatten(0, x.shape[:2])


def amend(x: Tensor, weight: Tensor, upscale: int) -> Tensor:
    """Compute `de_albino(arrange(x, r), weight, r/2)` for a `2r x 2r` kernel in one product.

    An arranged pixel of the map consists of `2 x 2` cells of size `r/2 x r/2`, and the kernel of
    `4 x 4` cells. The stride is one cell. Output `(i, j)` is a sum over the 16 cells under the
    kernel: the inner product of each cell and the part of the kernel that covers it. A pixel
    `(h, w)` of the map therefore contributes to the `5 x 5` outputs from `(2h - 3, 2w - 3)` to
    `(2h + 1, 2w + 1)`. This is a transposed convolution with stride 2 and padding 3, whose kernel
    `transposed_kernel` returns. The map is read once and never rearranged.

    Args:
        x: `(N, C, H, W)`, where C is a multiple of `r²`, and H and W are at least 2.
        weight: `(2r, 2r)`.
        upscale: r, even.

    Returns:
        `(N, C/r², 2H - 3, 2W - 3)`.

    Examples:
        >>> x, weight = torch.randn(2, 12, 3, 5), torch.randn(4, 4)
        >>> torch.allclose(amend(x, weight, 2), de_albino(arrange(x, 2), weight, 1), atol=1e-5)
        True
    """
    _check_map(x, upscale)
    if weight.shape != (2 * upscale, 2 * upscale):
        raise ValueError(
            f"weight: expected shape (2r, 2r) = {(2 * upscale, 2 * upscale)}, "
            f"got {tuple(weight.shape)}"
        )
    n, channels, height, width = x.shape
    maps, depth, area = channels // upscale**2, upscale**2, height * width
    kernel = transposed_kernel(weight, upscale)
    if x.is_contiguous(memory_format=torch.channels_last):
        pixels = x.permute(0, 2, 3, 1).reshape(n * area * maps, depth)
        reach = torch.mm(pixels, kernel).view(n, area, maps, WINDOW**2)
        reach = reach.permute(0, 2, 3, 1).reshape(n * maps, WINDOW**2, area)
    else:
        pixels = x.reshape(n * maps, depth, area)
        reach = torch.bmm(kernel.t().expand(n * maps, -1, -1), pixels)
    # Sum the contributions of the pixels to each output.
    y = fold(reach, output_size(height, width), WINDOW, padding=3, stride=2)
    return y.unflatten(0, (n, maps)).squeeze(2)


def transposed_kernel(weight: Tensor, upscale: int) -> Tensor:
    """Return the weights `(r², 25)` of each channel of a pixel in the `5 x 5` outputs it reaches.

    Column `5·dy + dx` is the part of the kernel that covers the pixel for that output. For the
    outermost outputs, half of the pixel is outside the kernel; at the corners, three quarters are.
    """
    parts = unfold(weight[None, None], upscale, padding=upscale // 2, stride=upscale // 2)
    return parts.squeeze(0).flip(1)


def affinity(x: Tensor, alpha: Tensor, common: Tensor | None = None) -> Tensor:
    """Add `alpha` times the common map to the mean over channels.

    `y[n] = mean_c x[n, c] + alpha · common`

    Args:
        x: `(N, C, H, W)`.
        alpha: scalar.
        common: `(H, W)` map; `None` uses the mean over the batch and its channels.

    Returns:
        `(N, H, W)`.
    """
    own = x.mean(1)
    return torch.addcmul(own, alpha, own.mean(0) if common is None else common)


def choose_upscale(channels: int) -> int:
    """Return the largest of 16, 8, 4, 2 whose square divides `channels`, or 2 if there is none.

    Examples:
        >>> choose_upscale(512), choose_upscale(1280), choose_upscale(440)
        (16, 16, 2)
    """
    return next((r for r in UPSCALES if channels % r**2 == 0), 2)


def output_size(height: int, width: int) -> tuple[int, int]:
    """Return the output size `(2·H - 3, 2·W - 3)` of `PublishedARM`, for any upscale factor.

    Raises:
        ValueError: the map is smaller than 2 x 2.

    Examples:
        >>> output_size(7, 7)
        (11, 11)
    """
    check_map_size(height, width)
    return 2 * height - 3, 2 * width - 3


def check_count(name: str, value: int) -> None:
    """Raise a ValueError unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def check_map_size(height: int, width: int) -> tuple[int, int]:
    """Return `(height, width)`.

    Raises:
        ValueError: the map is smaller than 2 x 2.
    """
    if min(height, width) < 2:
        raise ValueError(f"input_size: expected at least (2, 2), got ({height}, {width})")
    return height, width


def pair(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a size as `(H, W)`; one number stands for both."""
    try:
        height, width = size if isinstance(size, tuple | list) else (size, size)
        height, width = index(height), index(width)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a whole number or (H, W), got {size!r}") from error
    if min(height, width) < 1:
        raise ValueError(f"{name}: expected at least 1, got {size!r}")
    return height, width


def checked_channels(x: Tensor, channels: int) -> Tensor:
    """Return `x` if it has shape `(N, channels, H, W)`; works under `torch.jit.script`.

    Raises:
        ValueError: `x` has a different shape.
        TypeError: `x` is not a tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x)}")
    if x.ndim != 4 or x.size(1) != channels:
        raise ValueError(f"x: expected shape (N, C, H, W) = (N, {channels}, H, W), got {_shape(x)}")
    return x


def checked_map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return `x` if it has shape `(N, channels, height, width)`; works under `torch.jit.script`.

    Raises:
        ValueError: `x` has a different shape.
        TypeError: `x` is not a tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x)}")
    if x.ndim != 4 or x.size(1) != channels or x.size(2) != height or x.size(3) != width:
        raise ValueError(
            f"x: expected shape (N, C, H, W) = (N, {channels}, {height}, {width}), got {_shape(x)}"
        )
    return x


def _shape(x: Tensor) -> str:
    return f"({', '.join([str(size) for size in x.shape])})"


def _check_map(x: Tensor, upscale: int) -> None:
    if x.ndim != 4 or x.shape[1] % upscale**2:
        raise ValueError(
            f"x: expected shape (N, C, H, W) with C a multiple of upscale² = {upscale**2}, "
            f"got {tuple(x.shape)}"
        )
