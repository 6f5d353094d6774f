"""From a batch of images as stored to what the network takes, with or without augmentation."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

TURN = math.radians(15)  # largest rotation
ZOOM = 0.15  # largest change of scale
SHIFT = 0.08  # largest move, as a share of the side
BRIGHTNESS = 0.2  # largest change of contrast to the mean
ERASED = 0.5  # share of the images that lose a box
BOX = (1 / 6, 1 / 2)  # its sides, as shares of the image's


def standardize(images: Tensor) -> Tensor:
    """`(N, 3, H, W)` uint8 -> float, each image of mean 0 and deviation 1.

    A face in the shade then looks like one in the light.
    """
    pixels = images.float() / 255
    mean = pixels.mean((1, 2, 3), keepdim=True)
    deviation = pixels.std((1, 2, 3), keepdim=True)
    # An even image has no contrast to stretch.
    return (pixels - mean) / (deviation + 0.05)


def augment(images: Tensor, *, mirror: bool) -> Tensor:
    """`standardize`, then turn, zoom, move, mirror and rescale each image, and erase a box in half.

    Args:
        images: `(N, 3, H, W)` uint8.
        mirror: whether an image means the same mirrored.
    """
    n, _, height, width = images.shape
    device = images.device

    def uniform(bound: float) -> Tensor:
        return (2 * torch.rand(n, device=device) - 1) * bound

    angle, scale = uniform(TURN), 1 + uniform(ZOOM)
    sign = 1 - 2 * torch.randint(2, (n,), device=device) if mirror else torch.ones_like(scale)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    turned = torch.stack(
        [
            torch.stack([cosine * sign, -sine, 2 * uniform(SHIFT)], 1),
            torch.stack([sine * sign, cosine, 2 * uniform(SHIFT)], 1),
        ],
        1,
    )
    grid = affine_grid(turned, [n, 3, height, width], align_corners=False)
    moved = grid_sample(
        standardize(images), grid, padding_mode="reflection", align_corners=False
    ) * (1 + uniform(BRIGHTNESS)[:, None, None, None])
    return moved.masked_fill(_boxes(n, height, width, device), 0)


def _boxes(n: int, height: int, width: int, device: torch.device) -> Tensor:
    """`(N, 1, H, W)` True in a random box of a share of the images."""
    inside = torch.rand(n, 1, 1, device=device) < ERASED
    for dim, side in ((1, height), (2, width)):
        centre = torch.rand(n, 1, device=device) * side
        length = side * (BOX[0] + (BOX[1] - BOX[0]) * torch.rand(n, 1, device=device))
        places = torch.arange(side, device=device) + 0.5
        inside = inside & ((places - centre).abs() < length / 2).unsqueeze(3 - dim)
    return inside[:, None]
