"""CNN backbones by name, from images `(N, 3, S, S)` to the last feature map `(N, C, h, w)`."""

from collections.abc import Mapping, Sequence
from pickle import UnpicklingError
from pkgutil import resolve_name
from typing import NamedTuple

import safetensors.torch
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from unmuddle.arm.features import FeatureMap, create_network, find_features, map_shape
from unmuddle.recipe.errors import UsageError, refusing
from unmuddle.recipe.paths import user_path

_RUN_PREFIX = "backbone."
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALLEST_MAP = 3  # a smaller feature map has no centre that ARM can weigh against the border


Pixels = tuple[Sequence[float], Sequence[float]]


class Backbone(NamedTuple):
    """A network and the size of its last feature map.

    Attributes:
        network: network that maps images to the feature map.
        channels: number of channels C.
        map_size: size `(h, w)` of the feature map.
        unused: names of tensors in the weights file that the network does not have.
        pixels: per-channel mean and standard deviation that the pretrained weights expect, for
            pixels in [0, 1]. `None`: there are none, and each image is standardized on its own.
    """

    network: nn.Module
    channels: int
    map_size: tuple[int, int]
    unused: tuple[str, ...] = ()
    pixels: Pixels | None = None


def build_backbone(
    name: str, image_size: int, *, pretrained: bool = False, weights: str | None = None
) -> Backbone:
    """Build a backbone whose feature map is at least 3 x 3.

    A network made for larger images would reduce a small image to a point. Its first strides are
    then set to 1, one at a time, until the feature map is large enough. This does not change the
    shape of any weight.

    Args:
        name: `small`, `mobilefacenet`, a timm or torchvision name, `torchvision/NAME`, or
            `module:callable`.
        image_size: image side length in pixels.
        pretrained: whether to load pretrained weights from timm or torchvision.
        weights: weights file to load.

    Raises:
        UsageError: the name is unknown, the network has no feature map, or the weights do not fit.
    """
    with refusing(f"--backbone {name}"):
        network = _create(name, pretrained)
    unused, pixels = (), _expected_pixels(name, network) if pretrained else None
    if weights is not None:
        unused, pixels = _load_weights(network, name, weights)
    with refusing(f"--backbone {name}"):
        shape = map_shape(network, (image_size, image_size))
        while min(shape[1:]) < SMALLEST_MAP:
            if not _remove_first_stride(network):
                raise ValueError(
                    f"its feature map of a {image_size} x {image_size} image is only "
                    f"{shape[1]} x {shape[2]}; try a larger --image_size"
                )
            shape = map_shape(network, (image_size, image_size))
    return Backbone(network, shape[0], (shape[1], shape[2]), unused, pixels)


def _create(name: str, pretrained: bool) -> nn.Module:
    if name in _OWN:
        if pretrained:
            raise ValueError("has no weights to fetch; give --weights FILE")
        return _OWN[name]()
    if ":" not in name:
        return find_features(create_network(name, pretrained=pretrained))
    network = resolve_name(name)()
    if not isinstance(network, nn.Module):
        raise ValueError(f"expected an nn.Module, got {type(network).__name__}")
    return network


def _small() -> nn.Module:
    """Return a ResNet with 0.7 million parameters, stride 8 and one block per stage."""
    network = ResNet(
        BasicBlock,  # pyright: ignore[reportArgumentType]  timm annotates a class as its instance
        layers=(1, 1, 1, 1),
        channels=(24, 48, 96, 192),
        stem_type="deep",  # 2 * stem_width channels; conv1 is replaced by one layer below
        stem_width=12,
        output_stride=16,
        num_classes=0,
        global_pool="",
    )
    network.conv1 = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _mobilefacenet() -> nn.Module:
    """Return a network like MobileFaceNet, built from timm's blocks.

    It has 0.9 million parameters and maps 112 x 112 pixels to a 7 x 7 feature map.

    References:
        Chen et al., MobileFaceNets, 2018, arXiv 1804.07573.
    """
    blocks = (
        "dsa_r1_k3_s1_c64", "ir_r5_k3_s2_e2_c64", "ir_r1_k3_s2_e4_c128",
        "ir_r6_k3_s1_e2_c128", "ir_r1_k3_s2_e4_c128", "ir_r2_k3_s1_e2_c128",
    )  # fmt: skip
    return EfficientNet(
        decode_arch_def([[block] for block in blocks]),
        stem_size=64,
        fix_stem=True,
        num_features=512,
        act_layer=nn.ReLU6,
        num_classes=0,
        global_pool="",
    )


_OWN = {"small": _small, "mobilefacenet": _mobilefacenet}


def _expected_pixels(name: str, network: nn.Module) -> Pixels | None:
    """Return the per-channel mean and standard deviation that pretrained weights expect."""
    if name == "mobilefacenet":
        return (0.5,) * 3, (0.5,) * 3
    if not isinstance(network, FeatureMap):
        return None
    config = getattr(network.model, "pretrained_cfg", {})  # of timm; torchvision uses ImageNet's
    return config.get("mean", _IMAGENET[0]), config.get("std", _IMAGENET[1])


def _remove_first_stride(network: nn.Module) -> bool:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.stride = (1, 1)
            return True
        if isinstance(module, nn.MaxPool2d) and module.stride not in (1, (1, 1)):
            module.stride = 1
            return True
    return False


class StridedDepthwise(nn.Conv2d):
    """Strided depthwise convolution that computes in fp32 even under autocast.

    On CPUs, the gradient with respect to its input is much slower in bf16 than in fp32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a feature map `(N, C, H, W)`."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def avoid_slow_bf16(network: nn.Module) -> None:
    """Exempt the convolutions that bf16 slows down on CPUs from autocast."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = StridedDepthwise


def _load_weights(
    network: nn.Module, name: str, weights: str
) -> tuple[tuple[str, ...], Pixels | None]:
    """Load a weights file.

    Returns:
        Names of tensors in the file that the network does not have, and the expected pixels.
    """
    pixels = _expected_pixels(name, network)
    path = user_path("--weights", weights)
    try:
        state = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        target = network.model if isinstance(network, FeatureMap) else network
        if "classifier.weight" in state and any(key.startswith(_RUN_PREFIX) for key in state):
            # The file holds the whole model of a run, not only a backbone.
            target, pixels = network, saved_pixels(state)
            state = {key.removeprefix(_RUN_PREFIX): value for key, value in state.items()}
        missing, unexpected = target.load_state_dict(state, strict=False)
    except UnpicklingError as error:
        raise UsageError(
            f"--weights {weights}: cannot be loaded: damaged, or more than tensors, which would "
            "run code of its own; if you trust it, save only its state dict"
        ) from error
    except Exception as error:  # reading an arbitrary file can fail in any way
        raise UsageError(f"--weights {weights}: cannot be loaded: {error}") from error
    if missing:
        raise UsageError(
            f"--weights {weights}: lacks {len(missing)} of the backbone's tensors, "
            f"the first {missing[0]}"
        )
    return tuple(unexpected), pixels


def saved_pixels(state: Mapping[str, Tensor]) -> Pixels | None:
    """Return the per-channel mean and standard deviation that a run was trained with, if any."""
    if "standardize.mean" not in state:
        return None
    return state["standardize.mean"].tolist(), state["standardize.std"].tolist()
