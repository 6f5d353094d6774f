"""Networks that train in a second."""

from typing import ClassVar

import torch
from torch import Tensor, nn


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
    )  # fmt: skip


class Dice(nn.Module):
    """Stands for dropout: draws a random number each training step."""

    rolled: ClassVar[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.rolled.append(torch.rand(()).item())
        return x


def tiny_with_dice() -> nn.Module:
    return nn.Sequential(tiny(), Dice())


class Double(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def double() -> nn.Module:
    """`tiny` in double precision, as everything built after it, so that rounding hides nothing."""
    torch.set_default_dtype(torch.float64)
    return Double(*tiny())
