"""The last feature map of a CNN, which is the input of its pooling.

timm and torchvision are only imported for their own networks.
"""

import copy
import difflib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor, nn

TRIAL_SIZE = 224  # side in pixels of the blank image used to find the map
OTHER_TRIAL_SIZE = 160
_WRAPPERS = {  # networks in other modules, and what find_features takes instead
    "ARMClassifier": "features=model.features for a new ARM in place of its own",
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "OptimizedModule": "the network before torch.compile, which is model._orig_mod",
}


class FeatureMap(nn.Module):
    """Network without its head: images `(N, 3, H, W)` -> feature map `(N, C, h, w)`.

    Attributes:
        model: the network, with the original names of its weights.
    """

    # Final: `torch.jit.script` then compiles only one branch of `forward`.
    is_traced: Final[bool]
    is_channels_last: Final[bool]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.is_traced = isinstance(model, torch.fx.GraphModule)
        self.is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"  # as timm names it

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeatureMap":
        # A deep copy of a traced network is always in training mode.
        twin = FeatureMap(copy.deepcopy(self.model, memo))
        modes = (module.training for module in self.modules())
        _set_modes(zip(twin.modules(), modes, strict=True))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if self.is_traced:
            raise TypeError(
                "FeatureMap: a network cut by tracing cannot be pickled, since torchvision would "
                "pickle its graph of one mode alone; save its state_dict"
            )
        return super().__getstate__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map."""
        if self.is_traced:
            return self.model(x)["map"]
        output: Tensor = self.model.forward_features(x)  # pyright: ignore
        return output.permute(0, 3, 1, 2) if self.is_channels_last else output


def create_network(name: str, *, pretrained: bool = False) -> nn.Module:
    """Create a timm or torchvision network; use `torchvision/NAME` if both have the name.

    Raises:
        ValueError: neither library has the network.
    """
    plain, known = name.removeprefix("torchvision/"), []
    if find_spec("timm") is not None and plain == name:
        import timm

        known += timm.list_models()
        if name in known:
            return timm.create_model(name, pretrained=pretrained)
    if find_spec("torchvision") is not None:
        from torchvision import models

        known += models.list_models(models)
        if plain in known:
            return models.get_model(plain, weights="DEFAULT" if pretrained else None)
    if not known:
        raise ValueError(f"model: {name!r} needs timm or torchvision, and neither is installed")
    close = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise ValueError(f"model: {name!r} is known to neither timm nor torchvision{hint}")


def find_features(model: nn.Module, *, at: str | None = None) -> FeatureMap:
    """Return a copy of a timm or torchvision network up to its last feature map.

    Args:
        model: the network; it is not modified.
        at: name of the graph node whose output is the feature map, as in
            `torchvision.models.feature_extraction`; `None` selects the last feature map.

    Raises:
        ValueError: there is no feature map, or the network is from neither timm nor torchvision.
        TypeError: `model` is not an `nn.Module`, or `at` is not a name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    model = copy.deepcopy(model)
    if at is not None:
        if not isinstance(at, str):
            raise TypeError(f"at: expected the name of a graph node, got {type(at).__name__}")
        return _cut(model, at)
    home = type(model).__module__.partition(".")[0]
    if home == "timm" and hasattr(model, "forward_features"):
        features = FeatureMap(model)
        _drop_unused(model, features)
        return features
    if home == "torchvision":
        return _cut(model, _last_map(model))
    kind = type(model).__name__
    if kind in _WRAPPERS:
        raise ValueError(f"model: is a {kind}; give {_WRAPPERS[kind]}")
    raise ValueError(
        f"model: {kind} is no classifier of timm or torchvision; name the node "
        "that gives its last feature map with at=, or give attach_arm that part as features="
    )


def map_shape(features: nn.Module, input_size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the shape `(C, h, w)` of the feature map for images of a given size.

    Raises:
        ValueError: the network rejects images of this size, or does not return a feature map.
    """
    try:
        output = try_network(features, input_size)
    except Exception as error:  # a network can fail in any way on a size it was not made for
        shape = (1, _image_channels(features), *input_size)
        raise ValueError(f"input_size: the network takes no image {shape}: {error}") from error
    _check_map(output)
    return output.shape[1], output.shape[2], output.shape[3]


def _check_map(output: Any) -> None:
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"model: expected a feature map (N, C, h, w) before its pooling, got {found}"
        )


def _drop_unused(model: nn.Module, features: nn.Module) -> None:
    """Replace each child module that the feature map does not need with an identity."""
    used: set[nn.Module] = set()

    def note(module: nn.Module, *_: Any) -> None:
        used.add(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    config: dict[str, Any] = getattr(model, "default_cfg", {})
    _, *size = config.get("input_size", (3, TRIAL_SIZE, TRIAL_SIZE))
    _check_map(try_network(features, size))
    for hook in hooks:
        hook.remove()
    for name, child in model.named_children():
        if used.isdisjoint(child.modules()):
            setattr(model, name, nn.Identity().train(child.training))
    model.forward = _no_head  # else `torch.jit.script` would compile calls of removed parts


@torch.jit.unused
def _no_head(*_: Any) -> Tensor:
    raise RuntimeError("find_features removed the head of this network; call forward_features")


def _cut(model: nn.Module, node: str) -> FeatureMap:
    if find_spec("torchvision") is None:
        raise ValueError("at: needs torchvision, which is not installed")
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        cut = create_feature_extractor(model, {node: "map"}, suppress_diff_warning=True)
    except Exception as error:  # tracing can fail in any way
        hint = "if it cannot be traced, give the part before its pooling as features="
        raise ValueError(f"model: cannot be cut at {node!r}: {error}; {hint}") from error
    return FeatureMap(cut)


def _last_map(model: nn.Module) -> str:
    """Return the name of the last node whose output is a map that scales with the image."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    nodes = get_graph_node_names(model, suppress_diff_warning=True)[1]
    probe = create_feature_extractor(
        model,
        eval_return_nodes=nodes,
        train_return_nodes=nodes[:1],
        suppress_diff_warning=True,
    )
    shapes = _output_shapes(probe, TRIAL_SIZE)
    try:
        others = _output_shapes(probe, OTHER_TRIAL_SIZE)
    except Exception:  # a network for a single image size, which needs no adaptive pooling
        others = {}
    maps = [
        node
        for node, shape in shapes.items()
        if len(shape) == 4
        and min(shape[2:]) > 1
        and shape != others.get(node)  # adaptive pooling returns one size for every image
        and not node.startswith("classifier")
    ]
    # In a vision transformer, only the image and the patch embedding, a convolution, are maps.
    last = maps[-1]
    if nodes.index(last) < len(nodes) // 2:
        raise ValueError(
            f"model: {type(model).__name__} has no feature map (N, C, h, w) before its classifier, "
            f"which reads {shapes[nodes[-2]]}"
        )
    return last


def _output_shapes(probe: nn.Module, side: int) -> dict[str, tuple[int, ...]]:
    outputs: dict[str, Any] = try_network(probe, (side, side))
    return {node: tuple(v.shape) for node, v in outputs.items() if isinstance(v, Tensor)}


def try_network(model: nn.Module, size: Sequence[int]) -> Any:
    """Run a network on a blank image with three channels, or those of its first convolution."""
    like = next(model.parameters(), torch.zeros(()))
    first = _image_channels(model)
    with torch.no_grad(), eval_mode(model):
        try:
            return model(like.new_zeros(1, 3, *size))
        except Exception:  # a network can reject an image with any exception
            if first == 3:
                raise
            return model(like.new_zeros(1, first, *size))


def _image_channels(model: nn.Module) -> int:
    """Return the input channels of the first convolution, or 3 if there is none."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


@contextmanager
def eval_mode(module: nn.Module) -> Generator[None]:
    """Put a network in eval mode, and restore the mode of each of its modules on exit."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        _set_modes(modes)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Set modes by calling `train`, parents before children, since a module may override it."""
    for module, training in modes:
        module.train(training)
