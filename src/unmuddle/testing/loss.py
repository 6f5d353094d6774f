"""A loss as the laws see it."""

import copy
import inspect
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unmuddle.testing.examples import Batch

Kind = Literal[
    "pairwise", "normalised", "supervised", "logits", "contrastive", "soft", "views", "linear"
]
EPS, EPS_32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
PROBES = [
    Batch(n=n, dim=dim, classes=classes, seed=seed)
    for dim in (4, 3, 5, 6, 2, 1)
    for n, classes in ((6, 2), (8, 4))
    for seed in range(3)
]


class NotApplicable(Exception):  # noqa: N818  nothing went wrong
    """The law says nothing about this batch."""


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
            - `"views"`: takes `(B, V, D)` features as well
            - `"linear"`: keeps O(N) memory for its backward

    Options that the signature of a contrastive loss names, such as `temperature`, `mask` or
    `weight`, bring the laws about them, with the meaning they have in `supcon_loss`; bind them with
    `functools.partial` to leave those out. Modules bring the laws about modules. Where a loss is
    not defined for a batch, let it raise `NotApplicable`.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: an unknown kind.
    """

    def __init__(
        self, fn: Callable[..., Any], kinds: Collection[Kind] = ("pairwise", "supervised")
    ) -> None:
        if isinstance(fn, type):
            raise TypeError(f"fn: expected a loss, got the class {fn.__name__}; make one of it")
        if not callable(fn):
            raise TypeError(f"fn: expected a callable loss, got {type(fn).__name__}")
        if isinstance(kinds, str) or not isinstance(kinds, Collection):
            raise TypeError(f"kinds: expected a collection of names, got {kinds!r}")
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds: expected some of {KINDS}, got {kind!r}")
        self.fn = fn
        self._cast: dict[torch.dtype, nn.Module] = {}
        self.measurements: dict[Hashable, tuple[Tensor, float]] = {}  # see `law.measured`
        module: set[str] = {"module"} if isinstance(fn, nn.Module) else set()
        options = _options(fn).difference(KINDS, ["module"]) if "contrastive" in kinds else ()
        self.traits: Traits = frozenset({*kinds, *module, *options})

    def __repr__(self) -> str:
        """As `check_loss` names it."""
        fn = self.fn.func if isinstance(self.fn, partial) else self.fn
        return getattr(fn, "__qualname__", type(fn).__name__)

    @property
    def setup(self) -> str:
        """Python that imports it, or says that it has to be there."""
        name, module = getattr(self.fn, "__qualname__", ""), getattr(self.fn, "__module__", None)
        if not (name.isidentifier() and module):
            return "# loss: what was checked"
        return "" if module == "__main__" else f"from {module} import {name}"

    @property
    def code(self) -> str:
        """Python for it: its name, or `loss` where it has none of its own."""
        name = getattr(self.fn, "__qualname__", "loss")
        kinds = [kind for kind in KINDS if kind in self.traits]
        return f"Loss({name if name.isidentifier() else 'loss'}, {kinds})"

    def __call__(self, features: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """The loss as it is."""
        if "logits" in self.traits and isinstance(labels, Tensor):
            labels = labels % features.shape[1]
        found: Any = self._in(features.dtype)(features, labels, **options)
        if not isinstance(found, Tensor):
            raise TypeError(f"loss: expected a tensor, got {type(found).__name__}")
        if not found.is_floating_point():
            raise TypeError(f"loss: expected floating point numbers, got {found.dtype}")
        one_each = (features.shape[0],), (features.shape[0], 1), features.shape[:-1]
        if found.ndim and tuple(found.shape) not in map(tuple, one_each):
            raise ValueError(f"loss: expected a scalar or (N,), got {tuple(found.shape)}")
        return found

    def _in(self, dtype: torch.dtype) -> Callable[..., Any]:
        """The function, or a copy of the module whose parameters and buffers are of that type."""
        if not isinstance(self.fn, nn.Module):
            return self.fn
        if dtype not in self._cast:
            self._cast[dtype] = copy.deepcopy(self.fn).to(dtype)
        return self._cast[dtype]

    @cached_property
    def eps(self) -> float:
        """Of the format it works in when given fp64: that of fp32 if the result fits into that."""
        values: list[Tensor] = []
        for batch in PROBES:
            with suppress(NotApplicable):
                values.append(self.value(batch.features, batch.labels).detach())
            if len(values) == 3:
                break
        if not values:
            raise NotApplicable
        exact = torch.stack(values).double()
        fits = exact == exact.float().double()
        return EPS if not fits.all() or (exact == exact.round()).any() else EPS_32

    def copy(self) -> "Loss":
        """A loss of its own, so that what is tried changes nothing of the given one."""
        twin = self.like(self.fn)  # which copies a module when it is first called
        twin.measurements = self.measurements
        return twin

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
