"""Standardization and augmentation of batches of images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

TURN = math.radians(15)  # largest rotation
ZOOM = 0.15  # largest change of scale
SHIFT = 0.08  # largest shift, as a fraction of the side length
BRIGHTNESS = 0.2  # largest relative change of contrast
ERASED = 0.5  # fraction of the images in which a box is erased
BOX = (1 / 6, 1 / 2)  # range of its side lengths, as fractions of the image's
CHANCES = 11  # random numbers per image


class Standardize(nn.Module):
    """Standardization of stored images `(N, 3, H, W)` uint8 to the float input of a network.

    With `mean` and `std`, the output is `(x / 255 - mean) / std`, as a pretrained network expects.
    Without them, each image is scaled to mean 0 and standard deviation 1, which removes differences
    in lighting between images.

    Args:
        mean: `(3,)` mean of each channel, for pixels in [0, 1].
        std: `(3,)` standard deviation of each channel, for pixels in [0, 1].
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
        # The constant keeps the contrast of a uniform image from being stretched.
        return (pixels - mean) / (deviation + 0.05)


def augment(images: Tensor, chances: Tensor, *, mirror: bool, strength: float = 1) -> Tensor:
    """Rotate, scale, shift and mirror images, change their contrast, and erase boxes in half.

    Args:
        images: `(N, 3, H, W)`, standardized.
        chances: `(N, CHANCES)` uniform in [0, 1), which determine the augmentation of each image.
        mirror: whether mirroring an image preserves its class.
        strength: strength of all augmentations except mirroring; 0 disables them.
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
    """Return `(N, 1, H, W)`, `True` in a random box, for a fraction `share` of the images."""
    erased, *box = chances.unbind(1)
    inside = (erased < share)[:, None, None]
    for dim, side, centre, length in ((1, height, *box[:2]), (2, width, *box[2:])):
        half = side * (BOX[0] + (BOX[1] - BOX[0]) * length) / 2
        places = torch.arange(side, device=chances.device).float() + 0.5
        near = (places - side * centre[:, None]).abs() < half[:, None]
        inside = inside & near.unsqueeze(3 - dim)
    return inside[:, None]
