"""Standardization and augmentation of batches of images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

TURN = math.radians(15)  # largest rotation
ZOOM = 0.15  # largest change of scale
SHIFT = 0.08  # largest move, as a share of the side
BRIGHTNESS = 0.2  # largest change of contrast to the mean
ERASED = 0.5  # share of the images that lose a box
BOX = (1 / 6, 1 / 2)  # its sides, as shares of the image's
CHANCES = 11  # random numbers that an image's augmentation takes


class Standardize(nn.Module):
    """Images as stored, `(N, 3, H, W)` uint8 -> what a network takes, float.

    With `mean` and `std`: `(x / 255 - mean) / std`, as a pretrained network expects. Without them
    each image gets mean 0 and deviation 1: a face in the shade then looks like one in the light.

    Args:
        mean: `(3,)` of a channel, of pixels from 0 to 1.
        std: `(3,)`, likewise.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, None if values is None else torch.tensor(values).float())

    def forward(self, images: Tensor) -> Tensor:
        """Standardize a batch."""
        pixels = images.float() / 255
        if self.mean is not None and self.std is not None:
            return (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        mean = pixels.mean((1, 2, 3), keepdim=True)
        deviation = pixels.std((1, 2, 3), keepdim=True)
        # An even image has no contrast to stretch.
        return (pixels - mean) / (deviation + 0.05)


def augment(images: Tensor, chances: Tensor, *, mirror: bool, strength: float = 1) -> Tensor:
    """Turn, zoom, move, mirror and rescale each image, and erase a box in half of them.

    Args:
        images: `(N, 3, H, W)`, standardized.
        chances: `(N, CHANCES)` uniform in [0, 1), which decide what happens to each image.
        mirror: whether an image means the same mirrored.
        strength: of all but mirroring; 0: none.
    """
    chances = chances.to(images.device)
    flip = 2 * chances[:, 2] - 1
    turn, zoom, right, down, contrast = (strength * (2 * chances[:, [0, 1, 3, 4, 5]] - 1)).unbind(1)
    angle, scale = turn * TURN, 1 + zoom * ZOOM
    sign = 1 - 2 * (flip < 0).float() if mirror else torch.ones_like(scale)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    turned = torch.stack(
        [
            torch.stack([cosine * sign, -sine, 2 * SHIFT * right], 1),
            torch.stack([sine * sign, cosine, 2 * SHIFT * down], 1),
        ],
        1,
    )
    grid = affine_grid(turned, list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    moved = moved * (1 + BRIGHTNESS * contrast[:, None, None, None])
    return moved.masked_fill(_boxes(chances[:, 6:], strength * ERASED, *images.shape[2:]), 0)


def _boxes(chances: Tensor, share: float, height: int, width: int) -> Tensor:
    """Return `(N, 1, H, W)`, True in a random box of a share of the images."""
    erased, *box = chances.unbind(1)
    inside = (erased < share)[:, None, None]
    for dim, side, centre, length in ((1, height, *box[:2]), (2, width, *box[2:])):
        half = side * (BOX[0] + (BOX[1] - BOX[0]) * length) / 2
        places = torch.arange(side, device=chances.device).float() + 0.5
        near = (places - side * centre[:, None]).abs() < half[:, None]
        inside = inside & near.unsqueeze(3 - dim)
    return inside[:, None]
