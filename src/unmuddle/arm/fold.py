"""`fold_arm`: inference forms of ARM, with normalisation merged into a scale and an offset."""

import copy

import torch
from torch import Tensor, nn

from unmuddle.arm.functional import (
    WINDOW,
    checked_channels,
    checked_map,
    output_size,
    transposed_kernel,
)
from unmuddle.arm.module import ARM, weigh_positions
from unmuddle.arm.published import PublishedARM

PROBES = 4
# A traced network calls these functions, so it validates its input, too.
torch.fx.wrap("checked_map")
torch.fx.wrap("checked_channels")
torch.fx.wrap("weigh_positions")


class FoldedARM(nn.Module):
    """Inference form of an `ARM`: `(N, C, H, W)` -> `(N, C·K)`.

    `y = scale · weigh_positions(x, weight) + offset`

    Attributes:
        weight: `(K, H, W)`.
        scale: `(C, K)` scale of the normalisation.
        offset: `(C, K)` offset of the normalisation.
        out_features: number of features C·K.

    Raises:
        ValueError: the shape of the input is invalid.
    """

    def __init__(self, weight: Tensor, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.in_channels, self.out_features = len(scale), scale.numel()
        self.weight = nn.Parameter(weight)
        self.scale = nn.Parameter(scale)
        self.offset = nn.Parameter(offset)

    def forward(self, x: Tensor) -> Tensor:
        """Return feature vectors `(N, out_features)`."""
        y = weigh_positions(checked_channels(x, self.in_channels), self.weight)
        return torch.addcmul(self.offset, y, self.scale).flatten(1)


class FoldedPublishedARM(nn.Module):
    """Inference form of a `PublishedARM`: `(N, C, H, W)` -> `(N, out_features)`.

    `y = conv(sum_k scale[k] · x_k) + offset`, where `x_k` are the C/r² groups of r² channels

    In eval mode, ARM is affine. Batch normalisation scales and shifts each arranged channel, the
    mean over channels weights them equally, and affinity adds a constant map. All channels share
    one kernel, so it is enough to convolve their weighted sum. All constants are merged into
    `offset`. The convolution is the transposed convolution of `amend`, computed by a matrix product
    and `nn.Fold`.

    Attributes:
        scale: `(1, C/r²)`; `(1, 1)` if the ARM has a projection.
        kernel: `(25, r²)`, see `transposed_kernel`; `(25, C)` with the projection merged into it.
        offset: `(2H - 3, 2W - 3)`.
        input_size: size `(H, W)` of the feature map.
        out_features: number of output features.

    Raises:
        ValueError: the shape of the input is invalid.
    """

    def __init__(
        self, scale: Tensor, kernel: Tensor, offset: Tensor, input_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.maps, self.depth = scale.shape[1], kernel.shape[1]
        self.input_size = input_size
        self.scale = nn.Parameter(scale)
        self.kernel = nn.Parameter(kernel)
        self.offset = nn.Parameter(offset)
        self.add_reach = nn.Fold(output_size(*input_size), WINDOW, padding=3, stride=2)
        self.out_features = offset.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Return feature vectors `(N, out_features)`."""
        height, width = self.input_size
        x = checked_map(x, self.maps * self.depth, height, width)
        n, area = x.shape[0], height * width
        groups = x.reshape(n, self.maps, self.depth * area)
        one = torch.bmm(self.scale.expand(n, -1, -1), groups).view(n, self.depth, area)
        reach = torch.bmm(self.kernel.expand(n, -1, -1), one)
        return (self.add_reach(reach).squeeze(1) + self.offset).flatten(1)


def fold_arm(model: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode, with each ARM replaced by its folded form.

    The given network is not modified. Each folded module is compared with the original on random
    maps in fp64 before it is used.

    Raises:
        ValueError: there is no ARM, or an ARM cannot be folded. With `affinity="batch"`, its output
            depends on the batch. Without training or loaded weights, it has no statistics. Its
            weights and statistics must be finite.
        RuntimeError: a folded module does not agree with the original.

    Examples:
        >>> arm = ARM(64, (4, 4))
        >>> _ = arm(torch.randn(8, 64, 4, 4))  # a training batch
        >>> x, folded = torch.randn(2, 64, 4, 4), fold_arm(arm)
        >>> torch.allclose(folded(x), arm.eval()(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    model = copy.deepcopy(model).eval()
    named = model.named_modules(remove_duplicate=False)
    found = {name: arm for name, arm in named if isinstance(arm, ARM | PublishedARM)}
    if not found:
        raise ValueError(
            f"model: expected an ARM in it, found none, or only folded "
            f"ones, in {type(model).__name__}"
        )
    folded = {arm: _fold(arm, name or "arm") for name, arm in found.items()}
    if "" in found:
        return folded[found[""]]
    for name, arm in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, folded[arm])
    return model


@torch.no_grad()
def _fold(arm: ARM | PublishedARM, name: str) -> nn.Module:
    bn = arm.bn
    if isinstance(arm, PublishedARM) and arm.affinity == "batch":
        raise ValueError(f"{name}: affinity='batch' depends on the batch and cannot be folded")
    if bn.running_mean is None or bn.running_var is None or bn.num_batches_tracked == 0:
        raise ValueError(
            f"{name}: no training statistics to fold; train the network or load trained weights"
        )
    if not all(tensor.isfinite().all() for tensor in arm.state_dict().values()):
        raise ValueError(f"{name}: its weights or statistics are not finite")
    exact = copy.deepcopy(arm).double()
    scale = exact.bn.weight / (exact.bn.running_var + bn.eps).sqrt()  # pyright: ignore
    shift = exact.bn.bias - scale * exact.bn.running_mean  # pyright: ignore
    if isinstance(exact, ARM):
        shape = arm.in_channels, -1
        folded = FoldedARM(exact.weight.clone(), scale.reshape(shape), shift.reshape(shape))
    else:
        folded = _folded_steps(exact, scale, shift)
    _check_agreement(exact, folded, name)
    return folded.to(arm.weight).eval().requires_grad_(arm.weight.requires_grad)


def _folded_steps(exact: PublishedARM, scale: Tensor, shift: Tensor) -> FoldedPublishedARM:
    offset = shift.mean().expand_as(exact.running_common)
    if exact.affinity == "running":
        offset = offset + exact.alpha * exact.running_common
    scale = (scale / len(scale)).unsqueeze(0)
    kernel = transposed_kernel(exact.weight, exact.upscale).T.contiguous()
    if isinstance(exact.project, nn.Conv2d):
        kernel = torch.kron(scale, kernel) @ exact.project.weight.flatten(1)
        scale = scale.new_ones(1, 1)
    return FoldedPublishedARM(scale, kernel, offset.clone(), exact.input_size)


def _check_agreement(arm: ARM | PublishedARM, folded: nn.Module, name: str) -> None:
    """Compare both on random maps in fp64."""
    generator = torch.Generator(arm.weight.device).manual_seed(0)
    shape = PROBES, arm.in_channels, *arm.input_size
    x = torch.randn(shape, generator=generator, dtype=arm.weight.dtype, device=arm.weight.device)
    expected, got = arm(x), folded(x)
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
    if not error < 1e-9:
        raise RuntimeError(f"{name}: the folded form differs by {error:.1e} of the largest output")
