"""Erosion: the loss of signal that padding causes at the border of a network's feature map."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmuddle.arm.attach import ARMClassifier
from unmuddle.arm.features import eval_mode


class Erosion(NamedTuple):
    """Mean square of the activations, normalised to an average of 1 over the map.

    Attributes:
        energy: `(h, w)` energy of each pixel.
        by_distance: `(R,)` mean energy of the pixels at distance 0, 1, ... from the border.
        pixels: `(R,)` number of pixels at each distance.
    """

    energy: Tensor
    by_distance: Tensor
    pixels: Tensor


def erosion(model: nn.Module, loader: Iterable[Any]) -> Erosion:
    """Measure the activation energy of a network's feature map by distance to the border.

    `e(h, w) = mean over samples and channels of x², divided by its mean over the map`

    With zero padding, border pixels receive no input from outside the image, and every layer
    carries this effect further inwards. ARM is made for networks whose `by_distance[0]` is well
    below 1. If it is about 1, the border is not eroded.

    Args:
        model: maps images to a feature map `(N, C, h, w)`, as the result of `find_features` does,
            or an `ARMClassifier`, whose `.features` is used. It is run in eval mode.
        loader: yields batches of images, or tuples with the images as first element.

    Raises:
        ValueError: there is no batch, a batch does not contain images of one size, or the output of
            the network is not a feature map, is zero everywhere, or is not finite.
        TypeError: `model` is not an `nn.Module`.

    Examples:
        >>> blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(blur.weight)
        >>> erosion(blur, [torch.ones(2, 1, 4, 4)]).by_distance
        tensor([0.6943, 1.9172])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
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
                    "find_features(model) returns a network up to its last feature map"
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
