"""`PublishedARM(nn.Module)`: arrange, de-albino, batch normalisation, affinity."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unmuddle.arm.functional import (
    affinity,
    amend,
    check_count,
    checked_map,
    choose_upscale,
    output_size,
    pair,
)
from unmuddle.distributed import SumOverProcesses, is_distributed

Affinity = Literal["running", "batch", "none"]


class PublishedARM(nn.Module):
    """Amending representation module as published, which replaces the global pooling of a CNN.

    Arranges the channels of the last feature map as pixels, convolves them with one shared kernel,
    and applies batch normalisation. The kernel visits the border, which padding has eroded, less
    often than the centre. Then averages over the channels and adds `alpha` times the mean over all
    samples:

    `y = mean_c BN(de_albino(arrange(x))) + alpha · common`

    With `affinity="running"`, `common` is the mean of the batch in training mode and a running mean
    in eval mode, as in batch normalisation. The authors' code uses the mean of the batch in eval
    mode, too (`affinity="batch"`). Its predictions therefore depend on the other samples of the
    batch.

    Args:
        in_channels: number of channels C of the feature map.
        input_size: size `(H, W)` of the feature map, or one number for both; at least 2 x 2.
        upscale: upscale factor r. The kernel size is `2r` and the stride is `r/2`. `"auto"` is
            `choose_upscale(C)`, which is 16 for 512 channels, as in the paper. If `r²` does not
            divide C, a 1 x 1 convolution first increases C to the next multiple.
        affinity: `"running"`, `"batch"` or `"none"`.
        momentum: weight of a new batch in the running mean.

    Shape:
        `(N, C, H, W)` -> `(N, out_features)`, `out_features = (2H - 3)·(2W - 3)`; 121 for 7 x 7.

    Raises:
        ValueError: an option or the shape of the input is invalid.

    Examples:
        >>> arm = PublishedARM(512, (7, 7))
        >>> arm(torch.randn(4, 512, 7, 7)).shape
        torch.Size([4, 121])

    References:
        Shi & Zhu, Learning to Amend Facial Expression Representation via De-albino and Affinity,
        2021, arXiv 2103.10189.
    """

    def __init__(
        self,
        in_channels: int,
        input_size: int | tuple[int, int] = (7, 7),
        *,
        upscale: int | Literal["auto"] = "auto",
        affinity: Affinity = "running",
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        if affinity not in get_args(Affinity):
            raise ValueError(f"affinity: expected one of {get_args(Affinity)}, got {affinity!r}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum}")
        r = choose_upscale(in_channels) if upscale == "auto" else upscale
        if not isinstance(r, int) or r < 2 or r % 2:
            raise ValueError(f"upscale: expected an even number >= 2 or 'auto', got {upscale!r}")
        height, width = pair("input_size", input_size)
        out_height, out_width = output_size(height, width)

        self.in_channels = in_channels
        self.input_size = (height, width)
        self.upscale = r
        self.affinity: Affinity = affinity
        self.momentum = momentum
        self.out_features = out_height * out_width

        maps = -(-in_channels // r**2)
        self.project = (
            nn.Identity()
            if in_channels == maps * r**2
            else nn.Conv2d(in_channels, maps * r**2, 1, bias=False)
        )
        self.weight = nn.Parameter(torch.empty(2 * r, 2 * r))
        self.bn = nn.BatchNorm2d(maps)
        self.alpha = nn.Parameter(torch.ones(()), requires_grad=affinity != "none")
        self.running_common: Tensor
        self.register_buffer("running_common", torch.zeros(out_height, out_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `nn.Conv2d` and `nn.BatchNorm2d` do; `alpha = 1`, as in the paper."""
        bound = 1 / self.weight.shape[0]  # Conv2d's 1 / sqrt(fan_in)
        nn.init.uniform_(self.weight, -bound, bound)
        self.bn.reset_parameters()
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.running_common)

    def forward(self, x: Tensor) -> Tensor:
        """Return feature vectors `(N, out_features)` of a map `(N, C, H, W)`."""
        x = checked_map(x, self.in_channels, *self.input_size)
        x = self.bn(amend(self.project(x), self.weight, self.upscale))
        return self._affinity(x).flatten(1)

    def _affinity(self, x: Tensor) -> Tensor:
        if self.affinity == "none":
            return x.mean(1)
        if self.affinity == "running" and not self.training:
            return affinity(x, self.alpha, self.running_common)
        common = self._common(x)
        if self.affinity == "batch" and not self.training:
            warnings.warn(
                "PublishedARM(affinity='batch') in eval mode: predictions depend on the other "
                "samples of the batch; use affinity='running' for anything but reproducing the "
                "paper's code",
                stacklevel=2,
            )
        elif self.affinity == "running" and (len(x) or self._is_joined()):
            with torch.no_grad():
                self.running_common.lerp_(common.to(self.running_common.dtype), self.momentum)
        return affinity(x, self.alpha, common)

    def _common(self, x: Tensor) -> Tensor:
        """Return the mean over batch and channels, of all processes if `bn` is synchronised."""
        if self._is_joined():
            group = getattr(self.bn, "process_group", None)
            total = SumOverProcesses.apply(x.mean(1).sum(0), group)
            size = SumOverProcesses.apply(x.new_tensor(len(x)), group)
            return total / size
        return x.mean((0, 1))

    def _is_joined(self) -> bool:
        """Return whether the batches of several processes count as one."""
        return hasattr(self.bn, "process_group") and self.training and is_distributed()

    def extra_repr(self) -> str:
        """Options shown by `repr`."""
        return (
            f"{self.in_channels}, {self.input_size}, upscale={self.upscale}, "
            f"affinity={self.affinity!r}, out_features={self.out_features}"
        )
