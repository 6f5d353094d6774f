"""`check_loss`: try the laws that apply to a loss, and say what came of each."""

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
    """A loss breaks a law; the message holds the smallest counter-example."""


@dataclass(frozen=True)
class Result:
    """Outcome of one law.

    Attributes:
        law: which one.
        status: `"passed"`, `"failed"` or `"not asked"`.
        batch: the smallest counter-example, or one on which the loss is NaN.
        found: what the loss gave there.
        relation: as of a `Finding`.
        expected: what that should be compared with.
        error: what the loss raised instead.
        reason: why it was not asked.
        batches: on how many it held.
        code: Python that shows a failure, given the loss; it needs torch and the loss alone.
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
        """Compared numbers, or the error."""
        if self.error is not None:
            return self.error
        if self.found is None:
            return ""
        digits = 9 if f"{self.found:.9g}" != f"{self.expected:.9g}" else 17
        expected = WORDS[self.relation].format(f"{self.expected:.{digits}g}")
        return f"found {self.found:.{digits}g}, expected {expected}"

    def raise_if_failed(self) -> None:
        """Raise a BrokenLawError that names the law, both numbers and the counter-example."""
        if self.status == "failed":
            raise BrokenLawError("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return the law, both numbers, what was changed between them, and the code."""
        change = f" ({self.law.change})" if self.law.change else ""
        return [
            f"{self.law.name}: {self.law.statement}",
            f"    {self.numbers}{change}",
            *(f"    {line}" for line in self.code.splitlines()),
        ]


@dataclass(frozen=True)
class Report:
    """Outcomes of all laws; prints as a table.

    Attributes:
        loss: name of the loss.
        results: one a law, in the order of `LAWS`.
        kinds: what the loss is declared to be.
    """

    loss: str
    results: tuple[Result, ...]
    kinds: tuple[str, ...] = ()

    def of(self, status: Status) -> tuple[Result, ...]:
        """The results of that status."""
        if status not in get_args(Status):
            raise ValueError(f"status: expected one of {get_args(Status)}, got {status!r}")
        return tuple(result for result in self.results if result.status == status)

    def raise_if_failed(self) -> None:
        """Raise a BrokenLawError with every law that failed."""
        failed = self.of("failed")
        if failed:
            messages = [line for result in failed for line in result.lines()]
            raise BrokenLawError(f"{self.loss} breaks {len(failed)} laws\n" + "\n".join(messages))

    def __str__(self) -> str:
        """Counts, a counter-example of each law that failed, and why others were not asked."""
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
        """Return the report as JSON types: `loss`, `kinds`, `counts`, and a list `laws`."""
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
    """Return a number, or the name of one that JSON lacks."""
    return value if value is None or math.isfinite(value) else str(value)


def check_loss(
    fn: Callable[..., Tensor],
    *,
    kinds: Collection[Kind] = ("pairwise", "supervised"),
    laws: Iterable[Law | str] | None = None,
    profile: str | None = None,
    processes: int | None = None,
) -> Report:
    """Try every law that applies to a loss on many batches.

    Args:
        fn: `fn(features (N, D), labels (N,))` -> a scalar or `(N,)`; a function or a module.
        kinds: what the loss is meant to be; see `Loss`.
        laws: those to try, or their names; `None`: all.
        profile: `"fast"`, `"ci"` or `"thorough"`; `None`: that of the environment variable
            `UNMUDDLE_HYPOTHESIS_PROFILE`, or `"fast"`.
        processes: run a loss that gathers the batches of all processes in so many, under gloo, and
            compare the mean gradient with that of one process.

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
    """A pytest decorator: one test for every law that applies to a loss.

    Args:
        fn: the loss, as for `check_loss`.
        kinds: what it is meant to be.
        laws: those to try, of which the ones that apply are; `None`: all.
        expected_failures: names of laws that it breaks, each with the reason. Strict: a law that
            is kept all the same fails its test.
        profile: as for `check_loss`.
        processes: as for `check_loss`.

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
    loss = loss if processes is None else loss.in_processes(processes)
    strategies.profile(profile)  # a wrong name is told here
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
    """The loss, once tried: what does not work at all says so itself, with its traceback."""
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
    from unmuddle.testing.search import search  # loaded for a search only: it needs hypothesis

    own = loss.copy()

    def attempt(batch: Batch) -> Result:
        return try_law(law, own, batch)

    result = search(attempt, profile)
    return explained(law, own, result, attempt) if result.status == "failed" else result


def _not_asked(law: Law, loss: Loss) -> Result:
    """Say what a loss has to declare, or to be, for a law to be asked."""
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
    """Return whether an error comes from a law, and not from the loss that it called."""
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
    except Exception as error:  # whatever a loss raises breaks the law
        if law not in LAWS.values() and _is_at_fault(law, error):
            raise LawError(f"{law.name}: {type(error).__name__}: {error}") from error
        message = str(error).partition("\n")[0]
        return Result(law, "failed", batch, error=f"{type(error).__name__}: {message}")
    return Result(law, "failed", batch, found, finding.relation, expected)
