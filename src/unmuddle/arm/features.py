"""The last feature map of a CNN: what its pooling reads.

timm and torchvision are imported for a network of theirs only.
"""

import copy
import difflib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

TRIAL_SIZE = 224  # pixels a side of the image by which a map is found


class FeatureMap(nn.Module):
    """Images `(N, 3, H, W)` -> the map `(N, C, h, w)` of a network from which the head is cut.

    Attributes:
        model: the network, its weights under the names that they have there.
    """

    def __init__(self, model: nn.Module, *, method: str = "forward") -> None:
        super().__init__()
        self.model = model
        self.method = method

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeatureMap":
        # A copy of a network cut by torchvision is in training mode, whatever the original was in.
        twin = FeatureMap(copy.deepcopy(self.model, memo), method=self.method)
        twin.model.train(self.model.training)
        for ours, theirs in zip(self.modules(), twin.modules(), strict=True):
            theirs.training = ours.training
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """The map."""
        output: Any = getattr(self.model, self.method)(x)
        if isinstance(output, dict):
            return output["map"]
        is_channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"  # as timm says it
        return output.permute(0, 3, 1, 2) if is_channels_last else output


def create_network(name: str, *, pretrained: bool = False) -> nn.Module:
    """A network of timm or torchvision; `torchvision/NAME` where both have one of that name.

    Raises:
        ValueError: neither has it.
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
    """A copy of a timm or torchvision network, cut behind its last feature map.

    Args:
        model: the network; it is not changed.
        at: name of the node that gives the map, as `torchvision.models.feature_extraction` names
            nodes; `None` finds the last.

    Raises:
        ValueError: there is no map, or the network is neither timm's nor torchvision's.
        TypeError: it is no network.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    model = copy.deepcopy(model)
    if at is not None:
        return _cut(model, at)
    home = type(model).__module__.partition(".")[0]
    if home == "timm" and hasattr(model, "forward_features"):
        features = FeatureMap(model, method="forward_features")
        _drop_unused(model, features)
        return features
    if home == "torchvision":
        return _cut(model, _last_map(model))
    raise ValueError(
        f"model: {type(model).__name__} is no classifier of timm or torchvision; name the node "
        "that gives its last feature map with at=, or give attach_arm that part as features="
    )


def map_shape(features: nn.Module, input_size: tuple[int, int]) -> tuple[int, int, int]:
    """`(C, h, w)` of the map of an image of this size.

    Raises:
        ValueError: the network takes no such image, or gives no map.
    """
    try:
        output = _try(features, input_size)
    except Exception as error:  # a network can fail in any way on a size it was not made for
        raise ValueError(f"input_size: the network takes no {input_size} image: {error}") from error
    _check_map(output)
    return output.shape[1], output.shape[2], output.shape[3]


def _check_map(output: Any) -> None:
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"model: expected a feature map (N, C, h, w) before its pooling, got {found}"
        )


def _drop_unused(model: nn.Module, features: nn.Module) -> None:
    """Put an identity in place of each part of a network that its map does not need."""
    used: set[nn.Module] = set()

    def note(module: nn.Module, *_: Any) -> None:
        used.add(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    config: dict[str, Any] = getattr(model, "default_cfg", {})
    _, *size = config.get("input_size", (3, TRIAL_SIZE, TRIAL_SIZE))
    _check_map(_try(features, size))
    for hook in hooks:
        hook.remove()
    for name, child in model.named_children():
        if used.isdisjoint(child.modules()):
            setattr(model, name, nn.Identity())


def _cut(model: nn.Module, node: str) -> FeatureMap:
    if find_spec("torchvision") is None:
        raise ValueError("at: needs torchvision, which is not installed")
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        cut = create_feature_extractor(model, {node: "map"}, suppress_diff_warning=True)
    except Exception as error:  # tracing can fail in any way
        raise ValueError(f"model: cannot be cut at {node!r}: {error}") from error
    return FeatureMap(cut)


def _last_map(model: nn.Module) -> str:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    nodes = get_graph_node_names(model, suppress_diff_warning=True)[1]
    probe = create_feature_extractor(
        model,
        eval_return_nodes=nodes,
        train_return_nodes=nodes[:1],
        suppress_diff_warning=True,
    )
    outputs: dict[str, Any] = _try(probe, (TRIAL_SIZE, TRIAL_SIZE))
    maps = [
        node
        for node, value in outputs.items()
        if isinstance(value, Tensor)
        and value.ndim == 4
        and min(value.shape[2:]) > 1
        and not node.startswith("classifier")
    ]
    # An image itself is a map, and a vision transformer's patches are cut by one convolution.
    last = maps[-1]
    if nodes.index(last) < len(nodes) // 2:
        shape = tuple(outputs[nodes[-2]].shape)
        raise ValueError(
            f"model: {type(model).__name__} has no feature map (N, C, h, w) before its classifier, "
            f"which reads {shape}"
        )
    return last


def _try(model: nn.Module, size: Sequence[int]) -> Any:
    """What a network makes of a blank image of three channels, or as many as it begins with."""
    like = next(model.parameters(), torch.zeros(()))
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    with torch.no_grad(), eval_mode(model):
        try:
            return model(like.new_zeros(1, 3, *size))
        except Exception:  # any network has its own way of refusing an image
            if first == 3:
                raise
            return model(like.new_zeros(1, first, *size))


@contextmanager
def eval_mode(module: nn.Module) -> Generator[None]:
    """Run a network in eval mode, then set each of its modules back to the mode it had."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training
