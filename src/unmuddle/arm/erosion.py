"""Erosion: how far padding has worn down the border of a network's feature map."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmuddle.arm.attach import ARMClassifier
from unmuddle.arm.features import eval_mode


class Erosion(NamedTuple):
    """Mean square of the activations, 1 on average over the map.

    Attributes:
        energy: `(h, w)`.
        by_distance: `(R,)`, over the pixels 0, 1, ... from the border.
        pixels: `(R,)`, how many pixels those are.
    """

    energy: Tensor
    by_distance: Tensor
    pixels: Tensor


def erosion(model: nn.Module, loader: Iterable[Any]) -> Erosion:
    """Activation energy of a network's feature map, by distance to the border.

    `e(h, w) = mean over samples and channels of x², divided by its mean over the map`

    Zero padding feeds nothing into a border pixel from outside, and every layer carries that
    further in: `by_distance[0]` well below 1 is what ARM is made for. A network for which it is
    about 1 has no eroded border.

    Args:
        model: images to a feature map `(N, C, h, w)`, such as `find_features` gives, or an
            `ARMClassifier`, whose `.features` is taken. It runs in eval mode.
        loader: batches of images, or tuples whose first element they are.

    Raises:
        ValueError: no batch, something else than images of one size in it, or what the network
            gives is no map or is zero everywhere.

    Examples:
        >>> blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(blur.weight)
        >>> erosion(blur, [torch.ones(2, 1, 4, 4)]).by_distance
        tensor([0.6943, 1.9172])
    """
    features = model.features if isinstance(model, ARMClassifier) else model
    device = next(features.parameters(), torch.zeros(())).device
    total, samples = torch.zeros(()), 0
    with torch.no_grad(), eval_mode(features):
        for batch in loader:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, Tensor) or images.ndim != 4:
                found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"loader: expected batches of images (N, C, H, W), got {found}")
            x: Tensor = features(images.to(device))
            if x.ndim != 4:
                raise ValueError(
                    f"model: expected a feature map (N, C, h, w), got {tuple(x.shape)}; "
                    "find_features(model) cuts a network behind its last one"
                )
            if samples and x.shape[2:] != total.shape:
                raise ValueError(
                    f"loader: expected images of one size, got maps of {tuple(total.shape)} and "
                    f"{tuple(x.shape[2:])}"
                )
            total = total + x.double().square().mean(1).sum(0).cpu()
            samples += len(x)
    if not samples:
        raise ValueError("loader: expected at least one image, got none")
    if not 0 < total.mean() < torch.inf:
        raise ValueError("model: its map is all zero, or not finite")
    energy = (total / total.mean()).float()
    distance = _distance_to_border(*energy.shape)
    pixels = distance.flatten().bincount()
    sums = torch.zeros(len(pixels)).index_add(0, distance.flatten(), energy.flatten())
    return Erosion(energy, sums / pixels, pixels)


def _distance_to_border(height: int, width: int) -> Tensor:
    rows, cols = torch.arange(height), torch.arange(width)
    rows, cols = torch.minimum(rows, rows.flip(0)), torch.minimum(cols, cols.flip(0))
    return torch.minimum(rows[:, None], cols)
