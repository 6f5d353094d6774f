"""`check_loss`: try the laws that apply to a loss, and say what came of each."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Law, LawError
from unmuddle.testing.laws import LAWS
from unmuddle.testing.loss import PROBES, Kind, Loss, NotApplicable

Status = Literal["passed", "failed", "not applicable"]


class BrokenLawError(AssertionError):
    """A loss breaks a law; the message holds the smallest counter-example."""


@dataclass(frozen=True)
class Result:
    """Outcome of one law.

    Attributes:
        law: which one.
        status: `"passed"`, `"failed"` or `"not applicable"`.
        batch: the smallest counter-example, or one on which the loss is NaN.
        found: what the loss gave there.
        relation: `"=="`, `"<="` or `"<"`.
        expected: what that should be compared with.
        error: what the loss raised instead.
        loss: code for it.
        setup: code that comes before.
    """

    law: Law
    status: Status
    batch: Batch | None = None
    found: float | None = None
    relation: str = "=="
    expected: float | None = None
    error: str | None = None
    loss: str = "loss"
    setup: str = ""

    @property
    def code(self) -> str:
        """Python that shows the counter-example, given the loss as `loss` or by its name."""
        if self.batch is None:
            return ""
        law = f"LAWS[{self.law.name!r}]" if self.law in LAWS.values() else self.law.name
        lines = [
            "from unmuddle.testing import LAWS, Batch, Loss, try_law",
            self.setup,
            f"print(try_law({law}, {self.loss}, {self.batch!r}).numbers)",
        ]
        return "\n".join(filter(None, lines))

    @property
    def numbers(self) -> str:
        """Compared numbers, or the error."""
        if self.error is not None:
            return self.error
        if self.found is None:
            return ""
        digits = 9 if f"{self.found:.9g}" != f"{self.expected:.9g}" else 17
        return f"found {self.found:.{digits}g}, expected {self.relation} {self.expected:.{digits}g}"

    def raise_if_failed(self) -> None:
        """Raise a BrokenLawError that names the law, both numbers and the counter-example."""
        if self.status == "failed":
            raise BrokenLawError(
                f"{self.law.name}: {self.law.statement}\n{self.numbers}\n{self.code}"
            )


@dataclass(frozen=True)
class Report:
    """Outcomes of all laws; prints as a table.

    Attributes:
        loss: name of the loss.
        results: one a law, in the order of `LAWS`.
    """

    loss: str
    results: tuple[Result, ...]

    def of(self, status: Status) -> tuple[Result, ...]:
        """The results of that status."""
        if status not in get_args(Status):
            raise ValueError(f"status: expected one of {get_args(Status)}, got {status!r}")
        return tuple(result for result in self.results if result.status == status)

    def raise_if_failed(self) -> None:
        """Raise a BrokenLawError with every law that failed."""
        failed = self.of("failed")
        if failed:
            messages: list[str] = []
            for result in failed:
                messages.append(f"{result.law.name}: {result.law.statement}")
                messages += [f"    {line}" for line in (result.numbers, *result.code.splitlines())]
            raise BrokenLawError(f"{self.loss} breaks {len(failed)} laws\n" + "\n".join(messages))

    def __str__(self) -> str:
        """A line a law, those that failed first, then a counter-example of each."""
        failed, passed, others = map(self.of, ("failed", "passed", "not applicable"))
        width = max((len(result.law.name) for result in failed + passed), default=0)
        lines = [
            f"{self.loss}: {len(failed)} failed, {len(passed)} passed, "
            f"{len(others)} not applicable",
            "",
            *(f"{r.status}  {r.law.name:{width}}  {r.law.statement}" for r in failed + passed),
        ]
        if others:
            lines.append("not applicable: " + ", ".join(result.law.name for result in others))
        for result in failed:
            lines += ["", f"{result.law.name}: {result.numbers}", *result.code.splitlines()]
        return "\n".join(lines)


def check_loss(
    fn: Callable[..., Tensor],
    *,
    kinds: Collection[Kind] = ("pairwise", "supervised"),
    laws: Iterable[Law | str] | None = None,
    profile: str | None = None,
) -> Report:
    """Try every law that applies to a loss on many batches.

    Args:
        fn: `fn(features (N, D), labels (N,))` -> a scalar or `(N,)`; a function or a module.
        kinds: what the loss is meant to be; see `Loss`.
        laws: those to try, or their names; `None`: all.
        profile: `"fast"`, `"ci"` or `"thorough"`; `None`: that of the environment variable
            `UNMUDDLE_HYPOTHESIS_PROFILE`, or `"fast"`.

    Raises:
        ImportError: hypothesis is not installed.
        TypeError: an argument is of another type.
        ValueError: no law has that name.
        Exception: what the loss raises on an ordinary batch of six samples and two classes.

    Examples:
        >>> def spread(features, labels):
        ...     return features.pow(2).mean()  # a mean over features too
        >>> report = check_loss(spread, kinds=("pairwise",), laws=[LAWS["padding"]])
        >>> report.of("failed")[0].batch.n
        2
    """
    loss, chosen = _working(fn, kinds), _chosen(laws)
    return Report(repr(loss), tuple(_try(law, loss, profile) for law in chosen))


def parametrize_with_laws(
    fn: Callable[..., Tensor],
    *,
    kinds: Collection[Kind] = ("pairwise", "supervised"),
    laws: Iterable[Law | str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    profile: str | None = None,
) -> Any:
    """A pytest decorator: one test for every law that applies to a loss.

    Args:
        fn: the loss, as for `check_loss`.
        kinds: what it is meant to be.
        laws: those to try, of which the ones that apply are; `None`: all.
        expected_failures: names of laws that it breaks, each with the reason. Strict: a law that
            is kept all the same fails its test.
        profile: as for `check_loss`.

    Raises:
        ValueError: an expected failure is no law that applies.

    Examples:
        >>> import torch
        >>> @parametrize_with_laws(torch.nn.CrossEntropyLoss(), kinds=["logits"])
        ... def test_cross_entropy(law):
        ...     law()
    """
    import pytest

    from unmuddle.testing import strategies

    if not isinstance(expected_failures, Mapping | None):
        raise TypeError(f"expected_failures: expected names and reasons, got {expected_failures!r}")
    loss, reasons = _working(fn, kinds), dict(expected_failures or {})
    strategies.profile(profile)  # a wrong name is told here
    applying = [law for law in _chosen(laws) if law.applies(loss)]
    unknown = reasons.keys() - {law.name for law in applying}
    if unknown:
        raise ValueError(f"expected_failures: no laws of this loss: {', '.join(sorted(unknown))}")

    def case(law: Law) -> Any:
        def check() -> None:
            result = _try(law, loss, profile)
            result.raise_if_failed()
            if result.status == "not applicable":
                pytest.skip("it says nothing about any batch that this loss has a value for")

        reason = reasons.get(law.name)
        expected = pytest.mark.xfail(raises=BrokenLawError, strict=True, reason=reason or "")
        return pytest.param(check, id=law.name, marks=[] if reason is None else [expected])

    return pytest.mark.parametrize("law", [case(law) for law in applying])


def _working(fn: Callable[..., Tensor], kinds: Collection[Kind]) -> Loss:
    """The loss, once tried: what does not work at all says so itself, with its traceback."""
    loss = Loss(fn, kinds)
    with suppress(NotApplicable):
        loss.copy()(PROBES[0].features, PROBES[0].labels)
    return loss


def _chosen(laws: Iterable[Law | str] | None) -> list[Law]:
    if laws is None:
        return list(LAWS.values())
    if isinstance(laws, str | Law) or not isinstance(laws, Iterable):
        raise TypeError(f"laws: expected several laws or names, got {laws!r}")
    chosen: list[Law] = []
    for law in laws:
        if isinstance(law, str) and law not in LAWS:
            raise ValueError(f"laws: no law is called {law!r}")
        chosen.append(LAWS[law] if isinstance(law, str) else law)
        if not isinstance(chosen[-1], Law):
            raise TypeError(f"laws: expected laws or their names, got {law!r}")
    return chosen


def _try(law: Law, loss: Loss, profile: str | None) -> Result:
    if not law.applies(loss):
        return Result(law, "not applicable")
    from unmuddle.testing.search import search  # loaded for a search only: it needs hypothesis

    own = loss.copy()
    return search(lambda batch: try_law(law, own, batch), profile)


def _is_at_fault(law: Law, error: Exception) -> bool:
    """Return whether an error comes from a law, and not from the loss that it called."""
    codes: set[object] = set()
    files = ""
    traceback = error.__traceback__
    while traceback is not None:
        codes.add(traceback.tb_frame.f_code)
        files += traceback.tb_frame.f_code.co_filename
        traceback = traceback.tb_next
    of_loss = {Loss.__call__.__code__, Loss.gradient.__code__}
    is_in_backward = "torch/autograd" in files.replace("\\", "/")
    in_law = getattr(law.function, "__code__", None) in codes
    return in_law and codes.isdisjoint(of_loss) and not is_in_backward


def try_law(law: Law, loss: Loss, batch: Batch) -> Result:
    """Try one law on one batch.

    Raises:
        LawError: a law of one's own fails by itself, or returns something else than a `Finding`.

    Examples:
        >>> import torch
        >>> loss = Loss(torch.nn.CrossEntropyLoss(), ["logits"])
        >>> try_law(LAWS["permutation"], loss, Batch(n=4, dim=3, classes=2)).status
        'passed'
    """
    if not law.applies(loss):
        return Result(law, "not applicable")
    try:
        finding = law(loss, batch)
        if finding.says_nothing:
            return Result(
                law,
                "not applicable",
                batch,
                error="NaN on both sides",
                loss=loss.code,
                setup=loss.setup,
            )
        if finding.holds:
            return Result(law, "passed")
        found, expected = finding.worst
    except NotApplicable:
        return Result(law, "not applicable")
    except LawError:
        raise
    except Exception as error:  # whatever a loss raises breaks the law
        if law not in LAWS.values() and _is_at_fault(law, error):
            raise LawError(f"{law.name}: {type(error).__name__}: {error}") from error
        message = str(error).partition("\n")[0]
        return Result(
            law,
            "failed",
            batch,
            error=f"{type(error).__name__}: {message}",
            loss=loss.code,
            setup=loss.setup,
        )
    return Result(
        law, "failed", batch, found, finding.relation, expected, loss=loss.code, setup=loss.setup
    )
