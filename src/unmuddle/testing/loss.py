"""Wrapper that gives laws a uniform interface to a loss."""

import copy
import inspect
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unmuddle.testing.examples import Batch

Kind = Literal[
    "pairwise", "distances", "normalised",
    "supervised", "negatives", "hinge", "margin",
    "logits", "shift_invariant", "cross_entropy", "proper", "proper_sigmoid", "certain", "balanced",
    "proxies", "mean", "sum", "overlap", "dice",
    "contrastive", "soft", "views", "linear",
]  # fmt: skip
EPS, EPS_32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
PROBES = [
    Batch(n=n, dim=dim, classes=classes, seed=seed)
    for dim in (4, 3, 5, 6, 2, 1)
    for n, classes in ((6, 2), (8, 4))
    for seed in range(3)
]


class NotApplicableError(Exception):
    """Raised if a law does not apply to a batch, or if the loss is not defined for it."""


KINDS: tuple[Kind, ...] = get_args(Kind)
IMPLIED: dict[str, set[str]] = {
    "distances": {"pairwise"},
    "negatives": {"supervised"},
    "hinge": {"negatives", "supervised"},
    "contrastive": {"negatives"},
    "dice": {"overlap"},
    "cross_entropy": {"shift_invariant", "logits"},
    "proper": {"shift_invariant", "logits"},
    **{kind: {"logits"} for kind in ("shift_invariant", "proper_sigmoid", "certain", "balanced")},
}
Traits = frozenset[str]


@dataclass
class Call:
    """Recorded call of a loss: its arguments, and the value or gradient that it returned."""

    of: Literal["value", "gradient"]
    features: Tensor
    labels: Tensor | None
    options: dict[str, Any]
    result: Tensor | None = None


class Loss:
    """A loss `fn(features, labels, **options)` and its declared properties.

    Args:
        fn: function or module. It takes `(N, D)` features and `(N,)` integer labels, and returns a
            scalar or `(N,)` losses.
        kinds: properties that the loss is meant to have. They determine which laws are checked.

            Rows:

            - `"pairwise"`: depends on inner products of rows or on distances between them, not on
              their coordinates
            - `"distances"`: depends only on differences of rows; implies `"pairwise"`
            - `"normalised"`: depends on the directions of rows, not on their norms

            Labels that define which rows belong together:

            - `"supervised"`: labels define only which rows belong together
            - `"negatives"`: rows of other classes are pushed away; implies `"supervised"`
            - `"hinge"`: pairs or triplets beyond a margin contribute 0; the margin is a distance or
              a cosine; implies `"negatives"`
            - `"margin"`: has an option `margin`; a larger margin never lowers the loss, and raises
              it where classes are close together
            - `"proxies"`: a module with a `(C, D)` parameter, one row per class; labels are taken
              modulo C, and features are truncated or zero-padded to D

            Scores of classes; each of these kinds implies `"logits"`:

            - `"logits"`: rows are scores of D classes, and labels are class indices, which are
              taken modulo D
            - `"shift_invariant"`: adding a constant to all scores of a row does not change the loss
            - `"cross_entropy"`: softmax cross-entropy with targets that sum to one, such as
              smoothed labels; implies `"shift_invariant"`
            - `"proper"`: the expected loss is minimal where the softmax of the scores equals the
              distribution of the labels; implies `"shift_invariant"`
            - `"proper_sigmoid"`: the expected loss is minimal where the sigmoid of each score
              equals the relative frequency of its class
            - `"certain"`: the loss of a correct and certain prediction is 0
            - `"balanced"`: classes that are rare in the batch have larger weights; such a loss is
              not a mean over samples, so the laws for `"mean"` and `"sum"` do not apply to it

            Any loss:

            - `"mean"`: with `"logits"`, a mean over samples; with `"hinge"`, a mean over pairs,
              triplets or anchors
            - `"sum"`: with `"logits"`, a sum over samples
            - `"overlap"`: takes `(N, D)` predicted probabilities and `(N, D)` masks of 0 and 1
              instead of features and labels; a prediction equal to the mask has the loss 0
            - `"dice"`: symmetric, and 1 without overlap, like Dice and Jaccard; implies `"overlap"`
            - `"contrastive"`: the supervised contrastive loss of Khosla et al., averaged over
              anchors
            - `"soft"`: accepts `(N, C)` class memberships as labels
            - `"views"`: also accepts `(B, V, D)` features
            - `"linear"`: saves O(N) memory for the backward pass

    For a contrastive loss, options in its signature, such as `temperature`, `mask` or `weight`,
    enable the laws about them. They must have the same meaning as in `supcon_loss`. To exclude an
    option, bind it with `functools.partial`. If the loss is a module, the laws about modules are
    also checked. If the loss is not defined for a batch, it should raise `NotApplicableError`.

    Raises:
        TypeError: `fn` is not callable.
        ValueError: `kinds` contains an unknown kind.
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
        self.measurements: dict[Hashable, Any] = {}  # see `law.measured`
        self.calls: list[Call] | None = None  # calls are recorded if this is a list
        self.processes = 1
        module: set[str] = {"module"} if isinstance(fn, nn.Module) else set()
        options = _options(fn).difference(KINDS, ["module"]) if "contrastive" in kinds else set()
        if "margin" in kinds and "margin" in _options(fn):
            options.add("option margin")
        implied = {kind for given in kinds for kind in IMPLIED.get(given, ())}
        self.traits: Traits = frozenset({*kinds, *implied, *module, *options})

    def __repr__(self) -> str:
        """Return the name that is shown in reports."""
        fn = self.fn.func if isinstance(self.fn, partial) else self.fn
        return getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(self, features: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """Call the loss."""
        return self.raw(*self.given(features, labels), **options)

    def given(self, features: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return features and labels in the form that the function expects."""
        if not isinstance(labels, Tensor):
            return features, labels
        if "logits" in self.traits:
            return features, labels % features.shape[1]
        if "proxies" in self.traits:
            classes, dim = self.proxies.shape
            missing = max(0, dim - features.shape[-1])
            fitting = nn.functional.pad(features, (0, missing))[..., :dim]
            return fitting, labels % classes
        if "overlap" in self.traits:
            pixels = torch.arange(features.shape[1])
            return features.sigmoid(), ((labels[:, None] + pixels) % 2).to(features.dtype)
        return features, labels

    @property
    def proxies(self) -> Tensor:
        """First two-dimensional parameter `(C, D)` of a module, in fp64."""
        parameters = self.fn.parameters() if isinstance(self.fn, nn.Module) else ()
        matrix = next((p for p in parameters if p.ndim == 2), None)
        if matrix is None:
            raise NotApplicableError
        return matrix.detach().double()

    def raw(self, features: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """Call the function and validate its result; for `"overlap"`, `labels` are masks."""
        if self.calls is not None:
            self.calls.append(Call("value", features.detach().clone(), labels, options))
        found: Any = self._in(features.dtype)(features, labels, **options)
        if not isinstance(found, Tensor):
            raise TypeError(f"loss: expected a tensor, got {type(found).__name__}")
        if not found.is_floating_point():
            raise TypeError(f"loss: expected floating point numbers, got {found.dtype}")
        one_each = (features.shape[0],), (features.shape[0], 1), features.shape[:-1]
        if found.ndim and tuple(found.shape) not in map(tuple, one_each):
            raise ValueError(f"loss: expected a scalar or (N,), got {tuple(found.shape)}")
        if self.calls is not None:
            self.calls[-1].result = found.detach()
        return found

    def _in(self, dtype: torch.dtype) -> Callable[..., Any]:
        """Return the function, or a copy of the module converted to the dtype."""
        if not isinstance(self.fn, nn.Module):
            return self.fn
        if dtype not in self._cast:
            self._cast[dtype] = copy.deepcopy(self.fn).to(dtype)
        return self._cast[dtype]

    @cached_property
    def eps(self) -> float:
        """Machine epsilon of the precision in which the loss processes fp64 features.

        It is that of fp32 if the results can be represented in fp32.
        """
        values: list[Tensor] = []
        for batch in PROBES:
            with suppress(NotApplicableError):
                values.append(self.value(batch.features, batch.labels).detach())
            if len(values) == 3:
                break
        if not values:
            raise NotApplicableError
        exact = torch.stack(values).double()
        fits = exact == exact.float().double()
        return EPS if not fits.all() or (exact == exact.round()).any() else EPS_32

    def copy(self) -> "Loss":
        """Return a copy; calling the copy leaves this loss unchanged."""
        twin = self.like(self.fn)  # copies a module on its first call
        twin.measurements = self.measurements
        return twin

    def like(self, fn: Callable[..., Tensor]) -> "Loss":
        """Return another loss of the same kinds that calls `fn`."""
        other = Loss(fn)
        other.traits, other.processes = self.traits, self.processes
        return other

    def in_processes(self, number: int) -> "Loss":
        """Return a copy that is checked in `number` processes."""
        if isinstance(number, bool) or not isinstance(number, int) or number < 2:
            raise ValueError(f"processes: expected a whole number from 2 on, got {number!r}")
        other = self.copy()
        other.traits, other.processes = self.traits | {"processes"}, number
        return other

    def value(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss, or the mean of the per-sample losses, as a tensor of shape `()`."""
        return self(features, labels, **options).mean()

    def gradient(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the gradient of `value` with respect to the features.

        The gradient is zero if the loss does not depend on the features.
        """
        leaf = features.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self.value(leaf, labels, **options)
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        gradient = torch.autograd.grad(value, leaf, materialize_grads=True)[0]
        if self.calls:
            self.calls[-1].of, self.calls[-1].result = "gradient", gradient
        return gradient


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
