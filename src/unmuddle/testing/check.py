"""`check_loss`: check the laws that apply to a loss, and report the result of each."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from unmuddle.testing.counterexample import explained
from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Law, LawError
from unmuddle.testing.laws import LAWS
from unmuddle.testing.loss import KINDS, PROBES, Kind, Loss, NotApplicableError

Status = Literal["passed", "failed", "not asked"]
SILENT = "they say nothing about any batch that was tried"
FEW = 10
WORDS = {
    "==": "{}", "<=": "at most {}", "<": "less than {}",
    "is finite": "a finite number", "is NaN": "NaN",
}  # fmt: skip


class BrokenLawError(AssertionError):
    """Raised if a loss violates a law; the message contains the smallest counter-example."""


@dataclass(frozen=True)
class Result:
    """Result of checking one law.

    Attributes:
        law: the law.
        status: `"passed"`, `"failed"` or `"not asked"` (the law was not checked).
        batch: the smallest counter-example, or a batch for which the loss is NaN.
        found: result of the loss for that batch.
        relation: relation of the `Finding`.
        expected: value that `found` is compared with.
        error: error that the loss raised instead of returning a result.
        reason: why the law was not checked.
        batches: number of batches for which the law held.
        code: Python code that reproduces a failure, given the loss. It needs only torch and the
            loss.
    """

    law: Law
    status: Status
    batch: Batch | None = None
    found: float | None = None
    relation: str = "=="
    expected: float | None = None
    error: str | None = None
    reason: str = ""
    code: str = ""
    batches: int = 0

    @property
    def numbers(self) -> str:
        """Text with the two numbers compared, or with the error."""
        if self.error is not None:
            return self.error
        if self.found is None:
            return ""
        digits = 9 if f"{self.found:.9g}" != f"{self.expected:.9g}" else 17
        expected = WORDS[self.relation].format(f"{self.expected:.{digits}g}")
        return f"found {self.found:.{digits}g}, expected {expected}"

    def raise_if_failed(self) -> None:
        """Raise a `BrokenLawError` with the law, both numbers and the counter-example."""
        if self.status == "failed":
            raise BrokenLawError("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return lines with the law, both numbers, the change between them, and the code."""
        change = f" ({self.law.change})" if self.law.change else ""
        return [
            f"{self.law.name}: {self.law.statement}",
            f"    {self.numbers}{change}",
            *(f"    {line}" for line in self.code.splitlines()),
        ]


@dataclass(frozen=True)
class Report:
    """Results of all laws; printing it shows a summary.

    Attributes:
        loss: name of the loss.
        results: one result per law, in the order of `LAWS`.
        kinds: declared kinds of the loss.
    """

    loss: str
    results: tuple[Result, ...]
    kinds: tuple[str, ...] = ()

    def of(self, status: Status) -> tuple[Result, ...]:
        """Return the results with the given status."""
        if status not in get_args(Status):
            raise ValueError(f"status: expected one of {get_args(Status)}, got {status!r}")
        return tuple(result for result in self.results if result.status == status)

    def raise_if_failed(self) -> None:
        """Raise a `BrokenLawError` that lists every law that failed, or if no law was checked."""
        failed = self.of("failed")
        if not failed and not self.of("passed"):
            raise BrokenLawError(f"{self.loss}: no law was checked\n{self}")
        if failed:
            messages = [line for result in failed for line in result.lines()]
            raise BrokenLawError(f"{self.loss} breaks {len(failed)} laws\n" + "\n".join(messages))

    def __str__(self) -> str:
        """Return the counts, a counter-example per failed law, and why laws were not checked."""
        failed, passed, others = map(self.of, ("failed", "passed", "not asked"))
        lines = [
            f"{self.loss}: {len(failed)} failed, {len(passed)} passed, {len(others)} not asked",
            f"declared kinds: {', '.join(self.kinds) or 'none'}",
        ]
        for result in failed:
            lines += ["", *result.lines()]
        if passed:
            lines += ["", "passed: " + ", ".join(result.law.name for result in passed)]
        few = [f"{r.law.name} ({r.batches})" for r in passed if r.batches < FEW]
        silent = [result.law.name for result in others if result.reason == SILENT]
        for told, names in (
            (f"of these, on fewer than {FEW} batches", few),
            (f"not asked, since {SILENT}", silent),
        ):
            lines += [f"{told}: {', '.join(names)}"] if names else []
        reasons = Counter(result.reason for result in others if result.reason != SILENT)
        if reasons:
            more = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
            lines += ["", f"not asked; these would ask more laws: {more}"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict with the keys `loss`, `kinds`, `counts` and `laws`."""
        counts = {status: len(self.of(status)) for status in get_args(Status)}
        laws = [
            {
                "name": result.law.name,
                "statement": result.law.statement,
                "status": result.status,
                "found": _json(result.found),
                "relation": result.relation if result.found is not None else None,
                "expected": _json(result.expected),
                "error": result.error,
                "reason": result.reason or None,
                "batches": result.batches,
                "code": result.code or None,
            }
            for result in self.results
        ]
        kinds = list(self.kinds)
        return {"loss": self.loss, "kinds": kinds, "counts": counts, "laws": laws}


def _json(value: float | None) -> float | str | None:
    """Return the number, or its name if JSON cannot represent it."""
    return value if value is None or math.isfinite(value) else str(value)


def check_loss(
    fn: Callable[..., Tensor],
    *,
    kinds: Collection[Kind] = ("pairwise", "supervised"),
    laws: Iterable[Law | str] | None = None,
    profile: str | None = None,
    processes: int | None = None,
) -> Report:
    """Check every law that applies to a loss on many batches.

    Args:
        fn: function or module. It takes `(N, D)` features and `(N,)` labels, and returns a scalar
            or `(N,)` losses.
        kinds: properties that the loss is meant to have; see `Loss`.
        laws: laws to check, or their names; `None`: all.
        profile: `"fast"`, `"ci"` or `"thorough"`; `None`: the value of the environment variable
            `UNMUDDLE_HYPOTHESIS_PROFILE`, by default `"fast"`.
        processes: number of processes in which to run a loss that gathers the batches of all
            processes. They use the gloo backend. Their mean gradient is compared with the gradient
            of a single process.

    Raises:
        ImportError: hypothesis is not installed.
        TypeError: an argument has the wrong type.
        ValueError: `laws` contains an unknown name.
        Exception: any exception that the loss raises for an ordinary batch of six samples and two
            classes.

    Examples:
        >>> def spread(features, labels):
        ...     return features.pow(2).mean()  # a mean over features too
        >>> report = check_loss(spread, kinds=("pairwise",), laws=[LAWS["padding"]])
        >>> report.of("failed")[0].batch.n
        2
    """
    loss, chosen = _working(fn, kinds), _chosen(laws)
    loss = loss if processes is None else loss.in_processes(processes)
    declared = tuple(kind for kind in KINDS if kind in loss.traits)
    return Report(repr(loss), tuple(_try(law, loss, profile) for law in chosen), declared)


def parametrize_with_laws(
    fn: Callable[..., Tensor],
    *,
    kinds: Collection[Kind] = ("pairwise", "supervised"),
    laws: Iterable[Law | str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    profile: str | None = None,
    processes: int | None = None,
) -> Any:
    """Return a pytest decorator that runs a test once for every law that applies to a loss.

    Args:
        fn: the loss, as for `check_loss`.
        kinds: properties that the loss is meant to have; see `Loss`.
        laws: laws to check; those that do not apply are left out. `None`: all.
        expected_failures: names of the laws that the loss is expected to violate, each with a
            reason. They are strict: if such a law holds, its test fails.
        profile: as for `check_loss`.
        processes: as for `check_loss`.

    Raises:
        ValueError: an expected failure is not a law that applies to the loss.

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
    loss = loss if processes is None else loss.in_processes(processes)
    strategies.profile(profile)  # raises an error for an unknown name
    applying = [law for law in _chosen(laws) if law.applies(loss)]
    unknown = reasons.keys() - {law.name for law in applying}
    if unknown:
        raise ValueError(f"expected_failures: no laws of this loss: {', '.join(sorted(unknown))}")

    def case(law: Law) -> Any:
        def check() -> None:
            result = _try(law, loss, profile)
            result.raise_if_failed()
            if result.status == "not asked":
                pytest.skip(result.reason)

        reason = reasons.get(law.name)
        expected = pytest.mark.xfail(raises=BrokenLawError, strict=True, reason=reason or "")
        return pytest.param(check, id=law.name, marks=[] if reason is None else [expected])

    return pytest.mark.parametrize("law", [case(law) for law in applying])


def _working(fn: Callable[..., Tensor], kinds: Collection[Kind]) -> Loss:
    """Return the loss after one trial call; an exception that it raises is passed on."""
    loss = Loss(fn, kinds)
    with suppress(NotApplicableError):
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
        return _not_asked(law, loss)
    from unmuddle.testing.search import search  # imported late: it needs hypothesis

    own = loss.copy()

    def attempt(batch: Batch) -> Result:
        return try_law(law, own, batch)

    result = search(attempt, profile)
    return explained(law, own, result, attempt) if result.status == "failed" else result


def _not_asked(law: Law, loss: Loss) -> Result:
    """Return a result that states what a loss must declare for the law to be checked."""
    needed = sorted(law.needs - loss.traits)
    kinds = [name for name in needed if name in KINDS]
    others = [name for name in needed if name not in KINDS]
    if "module" in others:
        reason = "a module"
    elif "processes" in others:
        reason = "processes=2"
    elif kinds:
        reason = f"kind {' and '.join(kinds)}"
    else:
        reason = f"option {', '.join(name.removeprefix('option ') for name in others)}"
    return Result(law, "not asked", reason=reason)


def _is_at_fault(law: Law, error: Exception) -> bool:
    """Return whether the law itself, and not the loss that it called, raised the error."""
    codes: set[object] = set()
    files = ""
    traceback = error.__traceback__
    while traceback is not None:
        codes.add(traceback.tb_frame.f_code)
        files += traceback.tb_frame.f_code.co_filename
        traceback = traceback.tb_next
    of_loss = {Loss.raw.__code__, Loss.gradient.__code__}
    is_in_backward = "torch/autograd" in files.replace("\\", "/")
    in_law = getattr(law.function, "__code__", None) in codes
    return in_law and codes.isdisjoint(of_loss) and not is_in_backward


def try_law(law: Law, loss: Loss, batch: Batch) -> Result:
    """Check one law on one batch.

    Raises:
        LawError: the code of a custom law raises an error, or a law does not return a `Finding`.

    Examples:
        >>> import torch
        >>> loss = Loss(torch.nn.CrossEntropyLoss(), ["logits"])
        >>> try_law(LAWS["permutation"], loss, Batch(n=4, dim=3, classes=2)).status
        'passed'
    """
    if not law.applies(loss):
        return _not_asked(law, loss)
    try:
        finding = law(loss, batch)
        if finding.says_nothing:
            return Result(law, "not asked", batch, error="NaN on both sides", reason=SILENT)
        if finding.holds:
            return Result(law, "passed")
        found, expected = finding.worst
    except NotApplicableError:
        return Result(law, "not asked", reason=SILENT)
    except LawError:
        raise
    except Exception as error:  # any exception raised by the loss violates the law
        if law not in LAWS.values() and _is_at_fault(law, error):
            raise LawError(f"{law.name}: {type(error).__name__}: {error}") from error
        message = str(error).partition("\n")[0]
        return Result(law, "failed", batch, error=f"{type(error).__name__}: {message}")
    return Result(law, "failed", batch, found, finding.relation, expected)
