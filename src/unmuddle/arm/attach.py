"""`attach_arm`: a CNN with ARM in place of its pooling."""

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from unmuddle.arm.features import create_network, eval_mode, find_features, map_shape, try_network
from unmuddle.arm.functional import check_count, pair
from unmuddle.arm.module import ARM
from unmuddle.arm.published import PublishedARM

Head = ARM | PublishedARM


class ARMClassifier(nn.Module):
    """Images `(N, 3, H, W)` -> logits `(N, num_classes)`: features, ARM, dropout, classifier.

    Attributes:
        features: maps images to the last feature map.
        arm: maps the feature map to a feature vector.
        dropout: dropout before the classifier.
        classifier: maps the feature vector to logits.
    """

    def __init__(
        self, features: nn.Module, arm: Head, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        warn_if_narrow(arm, num_classes)
        self.features = features
        self.arm = arm
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(arm.out_features, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return feature vectors `(N, arm.out_features)`, without dropout."""
        return self.arm(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, num_classes)`."""
        return self.classifier(self.dropout(self.embed(x)))


def warn_if_narrow(arm: Head, num_classes: int) -> None:
    """Warn if `arm` has fewer output features than there are classes."""
    if arm.out_features < num_classes:
        height, width = arm.input_size
        warnings.warn(
            f"{type(arm).__name__}: out_features = {arm.out_features} for a {height} x {width} map "
            f"is less than num_classes = {num_classes}; larger images give a larger map",
            stacklevel=4,
        )


def attach_arm(
    model: str | nn.Module,
    num_classes: int,
    *,
    input_size: int | tuple[int, int],
    at: str | None = None,
    features: nn.Module | None = None,
    arm: Callable[[int, tuple[int, int]], Head] = ARM,
    dropout: float = 0.0,
    pretrained: bool = False,
) -> ARMClassifier:
    """Return a new network: the CNN up to its last feature map, then ARM and a classifier.

    The given network is not modified. The new network starts from an exact copy of its weights, and
    is in training mode.

    Args:
        model: a timm or torchvision network, or its name. Use `torchvision/NAME` if both libraries
            have the name. Any other network needs `features` or `at`.
        num_classes: number of classes of the new classifier.
        input_size: size `(H, W)` of the images, or one number for both. (The `input_size` of `ARM`
            is the size of the feature map.)
        at: name of the graph node whose output is the feature map; default: the last feature map.
            See `torchvision.models.feature_extraction.get_graph_node_names(model)`.
        features: the part of a custom network that maps images to the feature map. It is copied,
            and the rest of `model` is not used.
        arm: callable that creates the module from C and `(H, W)` of the feature map, such as
            `PublishedARM` or `partial(ARM, maps=4)`.
        dropout: dropout probability between ARM and classifier.
        pretrained: load the pretrained weights of timm or torchvision; `model` must be a name.

    Raises:
        ValueError: the network is unknown, it has no feature map or one smaller than 2 x 2, or the
            arguments contradict each other, or `dropout` is not a probability.
        TypeError: `model` is no network, `features` is not a module, `at` is not a name, or `arm`
            does not return a module with `out_features`.

    Examples:
        >>> import torch
        >>> cnn = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 64, 3, 2, 1))
        >>> model = attach_arm(cnn, 7, input_size=32, features=cnn)
        >>> model(torch.randn(4, 3, 32, 32)).shape, model.embed(torch.randn(4, 3, 32, 32)).shape
        (torch.Size([4, 7]), torch.Size([4, 128]))
    """
    check_count("num_classes", num_classes)
    if pretrained and not isinstance(model, str):
        raise ValueError("pretrained: model has to be the name of a network, to fetch its weights")
    if not callable(arm) or isinstance(arm, nn.Module):
        raise TypeError(
            "arm: expected what makes a module from C and (H, W), such as ARM, "
            f"partial(ARM, maps=4) or PublishedARM, got {arm!r}"
        )
    if features is not None and not isinstance(features, nn.Module):
        hint = "; name a part with at=" if isinstance(features, str) else ""
        raise TypeError(f"features: expected an nn.Module, got {type(features).__name__}{hint}")
    if features is not None and at is not None:
        raise ValueError("features, at: give one of the two, not both")
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a number from 0 to 1, got {dropout!r}")
    size = pair("input_size", input_size)
    if features is not None:
        if isinstance(model, nn.Module):
            _check_part(features, model, size)
        features = copy.deepcopy(features)
    else:
        network = create_network(model, pretrained=pretrained) if isinstance(model, str) else model
        features = find_features(network, at=at)
    channels, height, width = map_shape(features, size)
    if min(height, width) < 2:
        factor = max(size[0] // height, size[1] // width)
        raise ValueError(
            f"input_size: the map of a {size} image is {height} x {width}; ARM needs at least "
            f"2 x 2, an image of about {2 * factor} x {2 * factor}, or an earlier map"
        )
    try:
        head = arm(channels, (height, width))
    except TypeError as error:
        raise TypeError(f"arm: cannot be called with C and (H, W): {error}") from error
    if not isinstance(getattr(head, "out_features", None), int):
        raise TypeError(f"arm: expected a module with out_features, got {type(head).__name__}")
    _check_head(head, (channels, height, width))
    attached = ARMClassifier(features, head, num_classes, dropout).train()
    like = next(features.parameters(), attached.classifier.weight)
    for added in (attached.arm, attached.classifier):
        added.to(like.device, like.dtype)
    return attached


def _check_part(features: nn.Module, model: nn.Module, size: tuple[int, int]) -> None:
    """Raise a ValueError unless `features` consists of parts of `model` and reads its images."""
    if not {*features.parameters()} <= {*model.parameters()}:
        raise ValueError("features: expected a part of model, got another module")
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = tuple(inputs[0].shape)

    hooks = [module.register_forward_pre_hook(note) for module in (model, features)]
    with suppress(Exception):  # the head of a network may reject images of this size
        try_network(model, size)
    for hook in hooks:
        hook.remove()
    read = shapes.get(features, shapes.get(model))
    if read != shapes.get(model):
        raise ValueError(
            f"features: expected the part of model that maps images {shapes[model]} to the feature "
            f"map, got one that reads {read}; put the parts before it into features too"
        )


def _check_head(head: Head, shape: tuple[int, int, int]) -> None:
    """Raise a ValueError unless a head takes a feature map of this shape."""
    like = next(head.parameters(), torch.zeros(()))
    with torch.no_grad(), eval_mode(head), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as how an untrained head behaves in eval mode
        try:
            head(like.new_zeros(1, *shape))
        except Exception as error:  # the user's module can fail in any way
            raise ValueError(f"arm: takes no map (C, H, W) = {shape}: {error}") from error


def from_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a checkpoint of the authors' `ResNet18_ARM` to the names of an `ARMClassifier`.

    | authors' name | name here |
    |---|---|
    | `arm.de_albino.weight` `(1, 1, 32, 32)` | `arm.weight` `(32, 32)` |
    | `arm.bn.*` | `arm.bn.*` |
    | `arm.alpha` `(1,)` | `arm.alpha` `()` |
    | `fc.*` | `classifier.*` |
    | `features.{0, 1, 4 ... 7}.*` | `features.model.{conv1, bn1, layer1 ... layer4}.*` |

    A `module.` prefix is removed from the names. The checkpoint contains no running mean
    (`arm.running_common`), so load it with `strict=False`, into a network whose `PublishedARM` has
    `affinity="batch"` or `affinity="none"`. With `"batch"`, it computes the same as the authors'
    code.

    Args:
        state: the `state_dict` saved by the authors' code.

    Raises:
        ValueError: `state` has no `arm.de_albino.weight` or no `arm.alpha`.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    for name in ("arm.de_albino.weight", "arm.alpha"):
        if name not in state:
            raise ValueError(
                f"state: expected a tensor {name!r}, got {[*state][:5]}; give the state dict itself"
            )
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    heads = {f"features.{i}.": f"features.model.{part}." for i, part in enumerate(parts)}
    heads |= {"fc.": "classifier."}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        head = next((head for head in heads if name.startswith(head)), "")
        renamed[heads.get(head, "") + name.removeprefix(head)] = value
    renamed["arm.weight"] = renamed.pop("arm.de_albino.weight").squeeze((0, 1))
    renamed["arm.alpha"] = renamed["arm.alpha"].reshape(())
    return renamed
