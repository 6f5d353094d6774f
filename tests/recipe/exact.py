"""A small network in double precision, so that rounding does not hide what differs."""

import torch
from torch import Tensor, nn


class Network(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def network() -> nn.Module:
    """Of the process that calls it everything built from now on is in double precision."""
    torch.set_default_dtype(torch.float64)
    return Network(
        nn.Conv2d(3, 16, 5, stride=4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
    )  # fmt: skip
