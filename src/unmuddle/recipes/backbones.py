"""CNN backbones by name: images `(N, 3, S, S)` -> last feature map `(N, C, h, w)`."""

from importlib import import_module
from pickle import UnpicklingError
from typing import NamedTuple

import safetensors.torch
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from unmuddle.arm.features import FeatureMap, create_network, find_features, map_shape
from unmuddle.recipes.errors import UsageError
from unmuddle.recipes.paths import user_path

_RUN_PREFIX = "backbone."
SMALLEST_MAP = 3  # below that a feature map has no centre for ARM to weigh against its border


class Backbone(NamedTuple):
    """A network and the size of its last feature map.

    Attributes:
        network: images to feature map.
        channels: C.
        map_size: `(h, w)`.
        unused: names of the tensors in a file of weights that the network does not have.
    """

    network: nn.Module
    channels: int
    map_size: tuple[int, int]
    unused: tuple[str, ...] = ()


def build_backbone(
    name: str, image_size: int, *, pretrained: bool = False, weights: str | None = None
) -> Backbone:
    """Build a backbone whose map is at least 3 x 3.

    A network made for larger images would reduce small ones to a point; its first strides are then
    set to 1, one after the other, until the map is large enough. No weight changes shape by that.

    Args:
        name: `small`, a timm or torchvision name, `torchvision/NAME`, or `module:callable`.
        image_size: pixels a side.
        pretrained: let timm or torchvision fetch their weights.
        weights: file of weights to load.

    Raises:
        UsageError: unknown name, no feature map, or weights that do not fit.
    """
    try:
        network = _create(name, pretrained)
    except OSError as error:  # no network, no such file on the hub
        raise UsageError(f"--backbone {name}: cannot fetch pretrained weights: {error}") from error
    unused = () if weights is None else _load_weights(network, weights)
    shape = _map_shape(network, name, image_size)
    while min(shape[1:]) < SMALLEST_MAP:
        if not _remove_first_stride(network):
            raise UsageError(
                f"--backbone {name}: its feature map of a {image_size} x {image_size} image is "
                f"only {shape[1]} x {shape[2]}; try a larger --image_size"
            )
        shape = _map_shape(network, name, image_size)
    return Backbone(network, shape[0], (shape[1], shape[2]), unused)


def _create(name: str, pretrained: bool) -> nn.Module:
    if name == "small":
        if pretrained:
            raise UsageError("--backbone small: has no pretrained weights")
        return _small()
    if ":" in name:
        return _from_callable(name)
    try:
        return find_features(create_network(name, pretrained=pretrained))
    except ValueError as error:
        raise UsageError(f"--backbone {name}: {_reason(error)}") from error


def _small() -> nn.Module:
    """A ResNet of 0.7 million parameters for small images: stride 8, one block a stage."""
    network = ResNet(
        BasicBlock,  # pyright: ignore[reportArgumentType]  timm annotates a class as its instance
        layers=(1, 1, 1, 1),
        channels=(24, 48, 96, 192),
        stem_type="deep",  # its width is twice stem_width; one layer is enough here
        stem_width=12,
        output_stride=16,
        num_classes=0,
        global_pool="",
    )
    network.conv1 = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _from_callable(name: str) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        network = getattr(import_module(module), attribute)()
    except Exception as error:  # the user's code can fail in any way
        raise UsageError(f"--backbone {name}: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--backbone {name}: expected an nn.Module, got {type(network).__name__}")
    return network


def _map_shape(network: nn.Module, name: str, image_size: int) -> tuple[int, int, int]:
    try:
        return map_shape(network, (image_size, image_size))
    except ValueError as error:
        raise UsageError(f"--backbone {name}: {_reason(error)}") from error


def _reason(error: ValueError) -> str:
    """Without the name of an argument that a command line does not have."""
    return str(error).partition(": ")[2]


def _remove_first_stride(network: nn.Module) -> bool:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.stride = (1, 1)
            return True
        if isinstance(module, nn.MaxPool2d) and module.stride not in (1, (1, 1)):
            module.stride = 1
            return True
    return False


def _load_weights(network: nn.Module, weights: str) -> tuple[str, ...]:
    """Load a file of weights, and return the names of its tensors that the network lacks."""
    path = user_path("--weights", weights)
    try:
        state = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        target = network.model if isinstance(network, FeatureMap) else network
        if "classifier.weight" in state and any(key.startswith(_RUN_PREFIX) for key in state):
            # The model of a run, saved as a whole.
            target = network
            state = {key.removeprefix(_RUN_PREFIX): value for key, value in state.items()}
        missing, unexpected = target.load_state_dict(state, strict=False)
    except UnpicklingError as error:
        raise UsageError(
            f"--weights {weights}: cannot be loaded: damaged, or more than tensors, which would "
            "run code of its own; where you trust it, save its state dict alone"
        ) from error
    except Exception as error:  # a foreign file can fail in any way
        raise UsageError(f"--weights {weights}: cannot be loaded: {error}") from error
    if missing:
        raise UsageError(
            f"--weights {weights}: lacks {len(missing)} of the backbone's tensors, "
            f"the first {missing[0]}"
        )
    return tuple(unexpected)
