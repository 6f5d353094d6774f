"""`ARM(nn.Module)`: weights the positions of a feature map and keeps its channels."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unmuddle.arm.functional import check_count, check_map_size, checked_channels, pair


class ARM(nn.Module):
    """Amending representation module, which replaces the global pooling of a CNN.

    Weights the positions of the last feature map with K maps that all channels share, sums over the
    positions, and applies batch normalisation:

    `y[n, c, k] = BN((H·W)^-½ · sum_{h, w} weight[k, h, w] · x[n, c, h, w])`

    Average pooling weights all positions equally, although padding erodes the border and aligned
    faces have their eyes and mouths in the same positions. All weights are initialised to
    `(H·W)^-½`, with 10 % of noise in all maps but the first. Training therefore starts close to
    average pooling. `PublishedARM` also averages over the channels.

    Args:
        in_channels: number of channels C of the feature map.
        input_size: size `(H, W)` of the feature map, or one number for both; at least 2 x 2. For
            maps up to four times larger or smaller, the weights are interpolated bilinearly.
        maps: number of weight maps K.

    Shape:
        `(N, C, H, W)` -> `(N, out_features)`, `out_features = C·K`. Training needs N >= 2.

    Raises:
        ValueError: an option is out of range, the input has a different number of channels or
            dimensions, or it is much larger or smaller than `input_size`.
        TypeError: the input is not a tensor.

    Examples:
        >>> arm = ARM(512, (7, 7))
        >>> arm(torch.randn(4, 512, 7, 7)).shape
        torch.Size([4, 1024])

    References:
        After Shi & Zhu, Learning to Amend Facial Expression Representation via De-albino and
        Affinity, 2021, arXiv 2103.10189.
    """

    def __init__(
        self, in_channels: int, input_size: int | tuple[int, int] = (7, 7), *, maps: int = 2
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("maps", maps)):
            check_count(name, value)
        self.in_channels = in_channels
        self.input_size = check_map_size(*pair("input_size", input_size))
        self.maps = maps
        self.out_features = in_channels * maps
        self.weight = nn.Parameter(torch.empty(maps, *self.input_size))
        self.bn = nn.BatchNorm1d(self.out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights close to average pooling.

        The noise makes the maps differ, since equal maps would receive equal gradients.
        """
        start = 1 / math.sqrt(math.prod(self.input_size))
        nn.init.normal_(self.weight, start, 0.1 * start)
        nn.init.constant_(self.weight[0], start)
        self.bn.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return feature vectors `(N, out_features)` of a map `(N, C, H, W)`."""
        x = checked_channels(x, self.in_channels)
        return self.bn(weigh_positions(x, self.weight).flatten(1))

    def extra_repr(self) -> str:
        """Options shown by `repr`."""
        return (
            f"{self.in_channels}, {self.input_size}, maps={self.maps}, "
            f"out_features={self.out_features}"
        )


def weigh_positions(x: Tensor, weight: Tensor) -> Tensor:
    """Return weighted sums over positions: `(N, C, H, W)` and `(K, h, w)` -> `(N, C, K)`.

    `y[n, c, k] = (h·w)^½ / (H·W) · sum_{i, j} weight[k, i, j] · x[n, c, i, j]`, with the weights
    interpolated to `(H, W)`. An image of twice the size has about the same result.
    """
    height, width = x.size(2), x.size(3)
    scale = math.sqrt(weight.size(1) * weight.size(2)) / (height * width)
    if weight.size(1) != height or weight.size(2) != width:
        larger = max(height / weight.size(1), width / weight.size(2))
        smaller = max(weight.size(1) / height, weight.size(2) / width)
        if max(larger, smaller) > 4 or min(height, width) < 2:
            raise ValueError(
                f"x: expected a map of {weight.size(1)} x {weight.size(2)}, or up to 4 times "
                f"larger or smaller, got {height} x {width}; ARM's input_size is that of the map, "
                "attach_arm's that of the images"
            )
        weight = interpolate(weight.unsqueeze(0), [height, width], mode="bilinear").squeeze(0)
    columns = (weight * scale).flatten(1).t()
    if x.is_contiguous():
        return torch.mm(x.flatten(0, 1).flatten(1), columns).view(
            x.size(0), x.size(1), weight.size(0)
        )
    return torch.bmm(x.flatten(2), columns.expand(x.size(0), -1, -1))
