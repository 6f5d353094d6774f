"""A loss as the laws see it."""

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
    """The law says nothing about this batch."""


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
    """Call of a loss: what it was given, and the value or gradient that it gave."""

    of: Literal["value", "gradient"]
    features: Tensor
    labels: Tensor | None
    options: dict[str, Any]
    result: Tensor | None = None


class Loss:
    """A loss `fn(features, labels, **options)` and what is known of it.

    Args:
        fn: takes `(N, D)` features and `(N,)` integer labels, gives a scalar or `(N,)` losses; a
            function or a module.
        kinds: what holds for it, which decides what laws are asked of it.

            Rows:

            - `"pairwise"`: depends on products or distances of rows, not on their coordinates
            - `"distances"`: depends on differences of rows alone; `"pairwise"` too
            - `"normalised"`: depends on the directions of rows, not on their lengths

            Labels that say which rows belong together:

            - `"supervised"`: labels say that, and nothing else
            - `"negatives"`: rows of other classes are pushed away; `"supervised"` too
            - `"hinge"`: pairs or triplets beyond a margin, which is a distance or cosine, cost
              nothing; `"negatives"` too
            - `"margin"`: has an option `margin`; more of it costs more, never less
            - `"proxies"`: a module with a parameter `(C, D)`, a row for each class; labels are
              taken modulo C, and features are cut, or padded with zeros, to D

            Scores of classes; each of these is `"logits"` too:

            - `"logits"`: rows are scores of D classes, which labels name; they are taken modulo D
            - `"shift_invariant"`: a constant added to all scores of a row changes nothing
            - `"cross_entropy"`: softmax cross-entropy with targets that sum to one, such as
              smoothed labels; `"shift_invariant"` too
            - `"proper"`: the expected loss is least where the softmax of the scores is the
              distribution of the labels; `"shift_invariant"` too
            - `"proper_sigmoid"`: the same where the sigmoid of each score is the share of its class
            - `"certain"`: a certain right prediction costs nothing
            - `"balanced"`: a class that is rare in the batch weighs more; such a loss is no mean
              over samples, so `"mean"` and `"sum"` ask nothing of it

            Any:

            - `"mean"`: with `"logits"`, a mean over samples; with `"hinge"`, a mean over pairs,
              triplets or anchors
            - `"sum"`: with `"logits"`, a sum over samples
            - `"overlap"`: takes predicted probabilities `(N, D)` and masks `(N, D)` of 0 and 1 in
              place of features and labels; a prediction equal to the mask costs 0
            - `"dice"`: as Dice and Jaccard, 1 without overlap and symmetric; `"overlap"` too
            - `"contrastive"`: the supervised contrastive loss of Khosla et al., mean over anchors
            - `"soft"`: takes `(N, C)` memberships as labels
            - `"views"`: takes `(B, V, D)` features as well
            - `"linear"`: keeps O(N) memory for its backward

    Options that the signature of a contrastive loss names, such as `temperature`, `mask` or
    `weight`, bring the laws about them, with the meaning they have in `supcon_loss`; bind them with
    `functools.partial` to leave those out. Modules bring the laws about modules. Where a loss is
    not defined for a batch, let it raise `NotApplicableError`.

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
        self.measurements: dict[Hashable, Any] = {}  # see `law.measured`
        self.calls: list[Call] | None = None  # recorded if it is a list
        self.processes = 1
        module: set[str] = {"module"} if isinstance(fn, nn.Module) else set()
        options = _options(fn).difference(KINDS, ["module"]) if "contrastive" in kinds else set()
        if "margin" in kinds and "margin" in _options(fn):
            options.add("option margin")
        implied = {kind for given in kinds for kind in IMPLIED.get(given, ())}
        self.traits: Traits = frozenset({*kinds, *implied, *module, *options})

    def __repr__(self) -> str:
        """Name in a report."""
        fn = self.fn.func if isinstance(self.fn, partial) else self.fn
        return getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(self, features: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """Call the loss."""
        return self.raw(*self.given(features, labels), **options)

    def given(self, features: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features and labels as the function takes them."""
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
        """First parameter of a module that is a matrix, `(C, D)`, in fp64."""
        parameters = self.fn.parameters() if isinstance(self.fn, nn.Module) else ()
        matrix = next((p for p in parameters if p.ndim == 2), None)
        if matrix is None:
            raise NotApplicableError
        return matrix.detach().double()

    def raw(self, features: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        """The function, its result checked; masks in place of labels for `"overlap"`."""
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
        """The function, or a copy of the module whose parameters and buffers are of that type."""
        if not isinstance(self.fn, nn.Module):
            return self.fn
        if dtype not in self._cast:
            self._cast[dtype] = copy.deepcopy(self.fn).to(dtype)
        return self._cast[dtype]

    @cached_property
    def eps(self) -> float:
        """Rounding of the format it works in, given fp64: that of fp32 if the result fits there."""
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
        """Copy the loss, which leaves the given one as it is."""
        twin = self.like(self.fn)  # which copies a module when it is first called
        twin.measurements = self.measurements
        return twin

    def like(self, fn: Callable[..., Tensor]) -> "Loss":
        """Make another loss of the same kinds."""
        other = Loss(fn)
        other.traits, other.processes = self.traits, self.processes
        return other

    def in_processes(self, number: int) -> "Loss":
        """Copy the loss, to be tried in so many processes."""
        if isinstance(number, bool) or not isinstance(number, int) or number < 2:
            raise ValueError(f"processes: expected a whole number from 2 on, got {number!r}")
        other = self.copy()
        other.traits, other.processes = self.traits | {"processes"}, number
        return other

    def value(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss, or the mean of the losses, `()`."""
        return self(features, labels, **options).mean()

    def gradient(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Gradient of `value` by the features; zero where the loss does not depend on them."""
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
