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

SLACK = 256  # how many roundings: some of the dozens of operations err in one direction


Relation = Literal["==", "<=", "<", "is finite", "is NaN"]


class LawError(TypeError):
    """The law is wrong, not the loss."""


class Finding(NamedTuple):
    """Pair of results that a law compares.

    Attributes:
        found: what the loss gave; a tensor or a number.
        relation: `"=="`, `"<="`, `"<"`; or `"is finite"`, `"is NaN"`, of `found` alone.
        expected: what that is compared with; a tensor or a number.
        budget: how far the two may be apart; with `"<="`, how far `found` may be above `expected`;
            with `"<"`, how far it has to be below.
    """

    found: Tensor | float
    relation: Relation
    expected: Tensor | float = 0.0
    budget: float = 0.0

    @property
    def holds(self) -> bool:
        """Return whether the law holds here; a NaN on either side breaks a comparison."""
        excess = self._excess(*self._both())
        allowed = excess < -self.budget if self.relation == "<" else excess <= self.budget
        return bool(allowed.all())

    @property
    def says_nothing(self) -> bool:
        """NaN on both sides: the loss has no value for the batch."""
        found, expected = self._both()
        return bool((found.isnan() & expected.isnan()).any())

    @property
    def worst(self) -> tuple[float, float]:
        """The two numbers that fit least."""
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
        """Return how far `found` is beyond what the relation allows, entry by entry."""
        if self.relation in ("is finite", "is NaN"):
            fits = found.isfinite() if self.relation == "is finite" else found.isnan()
            return torch.where(fits, 0.0, math.inf)
        apart = found - expected
        apart = apart.abs() if self.relation == "==" else apart
        return torch.where(found == expected, 0.0, apart)  # infinities too


Statement = Callable[[Loss, Batch], Finding]


class Law:
    """A named law.

    Attributes:
        name: of its function.
        needs: kinds and options of the losses that it is about; empty: any loss.
        statement: first line of its docstring.
        change: what it does to the batch, in words, before it calls the loss again.
        show: code that shows it, given `loss`, `x` and `y`; empty: the calls that it makes.
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
        """`laws.rotation`."""
        return f"laws.{self.name}"

    def __call__(self, loss: Loss, batch: Batch) -> Finding:
        """Try the law.

        Raises:
            NotApplicableError: it says nothing about this batch.
            LawError: what it returns is no finding.
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
        """Return whether the law is about this loss."""
        return self.needs <= loss.traits


def law(*needs: str, change: str = "", show: str = "") -> Callable[[Statement], Law]:
    """Make a function a law, for losses of these kinds and options.

    Args:
        *needs: kinds and options.
        change: what the law does to the batch before it calls the loss again, in words.
        show: code that shows the law, given `loss`, `x` and `y`; default: the calls that it makes.

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
    """`compute(x, labels)` in fp64, and how far two honest such results may be apart.

    `256 (2^-29 |L32 - L64| + eps (1 + |L64|))`, of the largest entry: 2^-29 is how much finer fp64
    is than fp32. A loss that does not know fp32 gets the second term. In place of the 1 a gradient
    has 1 over the length of the shortest row. Of a loss that works in fp32 whatever it is given
    (which breaks `double_precision`), eps is that of fp32.

    Args:
        loss: whose result it is.
        compute: `loss.value`, `loss.gradient`, or the loss itself.
        x: `(N, D)` features.
        labels: `(N,)`.
        options: of the loss.
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
    """`compute(x, labels)` in fp64, and what an honest result in the type of `x` may be off.

    64 times the largest change of the exact result in three roundings of `x` at random, and
    64 eps (1 + |L|).

    Args:
        loss: whose result it is.
        compute: `loss.value` or `loss.gradient`.
        x: `(N, D)` features.
        labels: `(N,)`.
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
    """Return what `measure` gives, computed once for a loss and its copies."""
    if not isinstance(getattr(compute, "__self__", compute), Loss):
        return measure()  # a function of the law's own, which has no name to know it by
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
    """Equal for equal values only: of a tensor, its numbers and whether a gradient is asked for."""
    if not isinstance(value, Tensor):
        return repr(value)
    raw = value.detach().cpu().flatten().contiguous().view(torch.uint8)
    return value.dtype, value.requires_grad, tuple(value.shape), raw.numpy().tobytes()


def largest(values: Tensor) -> float:
    """Largest absolute value; 0 where there is none or it is not finite."""
    found = float(values.detach().abs().max()) if values.numel() else 0.0
    return found if math.isfinite(found) else 0.0
