"""A loss as the laws see it."""

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Kind = Literal[
    "pairwise", "normalised", "supervised", "logits", "contrastive", "soft", "views", "linear"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Traits = frozenset[str]


class Loss:
    """A loss `fn(features, labels, **options)` and what is known of it.

    Args:
        fn: takes `(N, D)` features and `(N,)` integer labels, gives a scalar or `(N,)` losses; a
            function or a module.
        kinds: what holds for it, which decides what laws are asked of it.

            - `"pairwise"`: depends on products or distances of rows, not on their coordinates
            - `"normalised"`: depends on the directions of rows, not on their lengths
            - `"supervised"`: labels say which rows belong together, and nothing else
            - `"logits"`: rows are scores of D classes, which labels name; they are taken modulo D
            - `"contrastive"`: the supervised contrastive loss of Khosla et al., mean over anchors
            - `"soft"`: takes `(N, C)` memberships as labels
            - `"views"`: takes `(B, V, D)` features
            - `"linear"`: keeps O(N) memory for its backward

    Options that the signature of `fn` names, such as `temperature`, `mask` or `weight`, bring the
    laws about them. Modules bring those about modules.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: an unknown kind.
    """

    def __init__(
        self, fn: Callable[..., Any], kinds: Collection[Kind] = ("pairwise", "supervised")
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a callable loss, got {type(fn).__name__}")
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds: expected some of {KINDS}, got {kind!r}")
        self.fn = fn
        module: set[str] = {"module"} if isinstance(fn, nn.Module) else set()
        self.traits: Traits = frozenset({*kinds, *module, *_options(fn)})

    def __repr__(self) -> str:
        """As `check_loss` names it."""
        fn = self.fn.func if isinstance(self.fn, partial) else self.fn
        return getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(self, features: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """The loss as it is."""
        if "logits" in self.traits:
            labels = None if labels is None else labels % features.shape[1]
        found: Any = self.fn(features, labels, **options)
        if not isinstance(found, Tensor):
            raise TypeError(f"loss: expected a tensor, got {type(found).__name__}")
        return found

    def like(self, fn: Callable[..., Tensor]) -> "Loss":
        """Another loss of which the same is known."""
        other = Loss(fn)
        other.traits = self.traits
        return other

    def value(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """`()` the loss, or the mean of the losses."""
        return self(features, labels, **options).mean()

    def gradient(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Of `value`, by the features; zero where the loss does not depend on them."""
        leaf = features.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self.value(leaf, labels, **options)
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        return torch.autograd.grad(value, leaf, materialize_grads=True)[0]


def _options(fn: Callable[..., Tensor]) -> set[str]:
    """Names of the optional arguments."""
    try:
        parameters = inspect.signature(
            fn.forward if isinstance(fn, nn.Module) else fn
        ).parameters.values()
    except (TypeError, ValueError):  # built in
        return set()
    bound = set(fn.keywords) if isinstance(fn, partial) else set[str]()
    return {p.name for p in parameters if p.default is not p.empty} - bound
