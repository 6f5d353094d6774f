"""Laws, their findings, and error budgets."""

import math
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from unmuddle.supcon import supcon_loss
from unmuddle.testing.examples import Batch
from unmuddle.testing.loss import EPS, KINDS, Loss

SLACK = 256  # rounding errors allowed: those of dozens of operations may have the same sign


Relation = Literal["==", "<=", "<", "is finite", "is NaN"]


class LawError(TypeError):
    """Raised if the law itself is at fault, not the loss."""


class Finding(NamedTuple):
    """Pair of results that a law compares.

    Attributes:
        found: result of the loss; a tensor or a number.
        relation: `"=="`, `"<="` or `"<"`; or `"is finite"` or `"is NaN"`, which check only `found`.
        expected: value that `found` is compared with; a tensor or a number.
        budget: tolerance. With `"=="`, the largest difference allowed; with `"<="`, how far `found`
            may exceed `expected`; with `"<"`, how far `found` must be below `expected`.
    """

    found: Tensor | float
    relation: Relation
    expected: Tensor | float = 0.0
    budget: float = 0.0

    @property
    def holds(self) -> bool:
        """Return whether the relation holds; a comparison with NaN never holds."""
        excess = self._excess(*self._both())
        allowed = excess < -self.budget if self.relation == "<" else excess <= self.budget
        return bool(allowed.all())

    @property
    def says_nothing(self) -> bool:
        """Return whether an entry is NaN on both sides; the loss is undefined for such a batch."""
        found, expected = self._both()
        return bool((found.isnan() & expected.isnan()).any())

    @property
    def worst(self) -> tuple[float, float]:
        """Entries of `found` and `expected` that violate the relation most."""
        found, expected = self._both()
        excess = self._excess(found, expected).nan_to_num(math.inf).flatten()
        if not len(excess):
            return math.nan, math.nan
        place = int(excess.argmax())
        return float(found.flatten()[place]), float(expected.flatten()[place])

    def _both(self) -> tuple[Tensor, Tensor]:
        found, expected = (
            torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
            for value in (self.found, self.expected)
        )
        if found.shape != expected.shape and expected.ndim and found.ndim:
            raise AssertionError(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        found, expected = torch.broadcast_tensors(found, expected)
        return found, expected

    def _excess(self, found: Tensor, expected: Tensor) -> Tensor:
        """Return the elementwise excess of `found` over what the relation allows."""
        if self.relation in ("is finite", "is NaN"):
            fits = found.isfinite() if self.relation == "is finite" else found.isnan()
            return torch.where(fits, 0.0, math.inf)
        apart = found - expected
        apart = apart.abs() if self.relation == "==" else apart
        return torch.where(found == expected, 0.0, apart)  # also for equal infinities


Statement = Callable[[Loss, Batch], Finding]


class Law:
    """A named law.

    Attributes:
        name: name of its function.
        needs: kinds and options that a loss must have for the law to apply; empty: any loss.
        statement: first line of its docstring.
        change: description of how the law changes the batch before it calls the loss again.
        show: code that demonstrates a violation, given `loss`, `x` and `y`. If empty, the calls
            that the law makes are shown.
    """

    def __init__(
        self, function: Statement, needs: Collection[str], change: str = "", show: str = ""
    ) -> None:
        self.function = function
        self.change = change
        self.show = show
        self.name = function.__name__
        self.needs = frozenset(needs)
        self.__doc__ = function.__doc__
        self.statement = (function.__doc__ or "").partition("\n")[0].rstrip(".")

    def __repr__(self) -> str:
        """Return a name such as `laws.rotation`."""
        return f"laws.{self.name}"

    def __call__(self, loss: Loss, batch: Batch) -> Finding:
        """Check the law on one batch.

        Raises:
            NotApplicableError: the law does not apply to this batch.
            LawError: the law does not return a valid `Finding`.
        """
        finding: object = self.function(loss, batch)
        if not isinstance(finding, Finding) or finding.relation not in get_args(Relation):
            raise LawError(
                f"{self.name}: expected a Finding of {get_args(Relation)}, got {finding!r}"
            )
        if finding.budget < 0:
            raise LawError(f"{self.name}: budget: expected at least 0, got {finding.budget}")
        for name, value in (("found", finding.found), ("expected", finding.expected)):
            if not isinstance(value, Tensor | float | int):
                raise LawError(
                    f"{self.name}: {name}: expected a tensor or a number, "
                    f"got {type(value).__name__}"
                )
        return finding

    def applies(self, loss: Loss) -> bool:
        """Return whether the law applies to this loss."""
        return self.needs <= loss.traits


def law(*needs: str, change: str = "", show: str = "") -> Callable[[Statement], Law]:
    """Return a decorator that turns a function into a law.

    Args:
        *needs: kinds and options that a loss must have for the law to apply.
        change: description of how the law changes the batch before it calls the loss again.
        show: code that demonstrates a violation, given `loss`, `x` and `y`. By default, the calls
            that the law makes are shown.

    Examples:
        >>> @law("pairwise")
        ... def mirror(loss, batch):
        ...     '''Turning the sign of all features changes nothing.'''
        ...     value, budget = measured(loss, loss.value, batch.features, batch.labels)
        ...     return Finding(loss.value(-batch.features, batch.labels), "==", value, budget)
        >>> mirror.statement
        'Turning the sign of all features changes nothing'
    """
    for name in needs:
        if not isinstance(name, str):
            raise TypeError(f"law: expected names of kinds and options, as law(), got {name!r}")
        meant = get_close_matches(name, KINDS, n=1, cutoff=0.8)
        if meant and name not in (*KINDS, *signature(supcon_loss).parameters):
            warnings.warn(
                f"law: no kind is called {name!r}; did you mean {meant[0]!r}?", stacklevel=2
            )
    return lambda function: Law(function, needs, change, show)


def measured(
    loss: Loss, compute: Callable[..., Tensor], x: Tensor, labels: Tensor, **options: object
) -> tuple[Tensor, float]:
    """Return `compute(x, labels)` in fp64, and an error budget for it.

    The budget is the largest difference allowed between two correctly computed results:
    `256 (2^-29 |L32 - L64| + eps (1 + |L64|))`. Here `|.|` is the largest absolute entry, and 2^-29
    is the machine epsilon of fp64 divided by that of fp32. If the loss does not support fp32, only
    the second term is used. For a gradient, the 1 is replaced by the reciprocal of the smallest
    norm of a row. If the loss computes in fp32 whatever the dtype of its input (which violates
    `double_precision`), eps is that of fp32.

    Args:
        loss: the loss under test.
        compute: `loss.value`, `loss.gradient`, or the loss itself.
        x: `(N, D)` features.
        labels: `(N,)` labels.
        options: options of the loss.
    """

    def measure() -> tuple[Tensor, float]:
        exact = compute(x, labels, **options).detach()
        try:
            coarse = compute(x.detach().float(), labels, **options).double()
        except (RuntimeError, TypeError, ValueError):
            coarse = exact
        unit = 1.0
        if exact.shape == x.shape:
            unit = 1 / max(float(x.detach().flatten(1).norm(dim=1).min()), EPS)
        rounding = 2**-29 * largest(coarse - exact)
        return exact, SLACK * (rounding + loss.eps * (unit + largest(exact)))

    return _once(loss, measure, compute, x, labels, options)


def as_good_as_its_input(
    loss: Loss, compute: Callable[..., Tensor], x: Tensor, labels: Tensor
) -> tuple[Tensor, float]:
    """Return `compute(x, labels)` in fp64, and an error budget in the dtype of `x`.

    The budget is 64 times the largest change of the exact result under three random relative
    perturbations of `x` by at most eps, plus 64 eps (1 + |L|).

    Args:
        loss: the loss under test.
        compute: `loss.value` or `loss.gradient`.
        x: `(N, D)` features.
        labels: `(N,)` labels.
    """

    def measure() -> tuple[Tensor, float]:
        eps = torch.finfo(x.dtype).eps
        g = torch.Generator().manual_seed(0)
        exact, most = compute(x.double(), labels), 0.0
        for _ in range(3):
            moved = x.double() * (1 + eps * (2 * torch.rand(x.shape, generator=g).double() - 1))
            most = max(most, largest(compute(moved, labels) - exact))
        return exact, 64 * (most + eps * (1 + largest(exact)))

    return _once(loss, measure, compute, x, labels, {})


def _once(
    loss: Loss,
    measure: Callable[[], tuple[Tensor, float]],
    compute: Callable[..., Tensor],
    x: Tensor,
    labels: Tensor,
    options: Mapping[str, object],
) -> tuple[Tensor, float]:
    """Return the result of `measure`, cached for a loss and its copies."""
    if not isinstance(getattr(compute, "__self__", compute), Loss):
        return measure()  # a function defined by the law has no name that could serve as a key
    given = ("x", x), ("labels", labels), *sorted(options.items())
    key = (
        measure.__qualname__,
        getattr(compute, "__name__", ""),
        *((name, _content(value)) for name, value in given),
    )
    if key not in loss.measurements:
        loss.measurements[key] = measure()
    return loss.measurements[key]


def _content(value: object) -> Hashable:
    """Return a cache key that is equal only for equal values.

    The key of a tensor contains its data and whether it requires a gradient.
    """
    if not isinstance(value, Tensor):
        return repr(value)
    raw = value.detach().cpu().flatten().contiguous().view(torch.uint8)
    return value.dtype, value.requires_grad, tuple(value.shape), raw.numpy().tobytes()


def largest(values: Tensor) -> float:
    """Return the largest absolute value; 0 if there is none or if it is not finite."""
    found = float(values.detach().abs().max()) if values.numel() else 0.0
    return found if math.isfinite(found) else 0.0
