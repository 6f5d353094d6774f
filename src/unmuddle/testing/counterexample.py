"""Counter-examples as self-contained code: rounded tensors, calls of the loss, numbers."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Law
from unmuddle.testing.loss import Call, Loss

if TYPE_CHECKING:
    from unmuddle.testing.check import Result

MOST = 120  # largest number of entries of a tensor that is written out


@dataclass(frozen=True)
class WrittenOut(Batch):
    """Batch whose features and labels are given explicitly."""

    rows: tuple[tuple[float, ...], ...] = ()
    names: tuple[int, ...] = ()

    @property
    def features(self) -> Tensor:
        """Rows `(N, D)`, fp64."""
        return torch.tensor(self.rows, dtype=torch.float64)

    @property
    def labels(self) -> Tensor:
        """Labels `(N,)`, int64."""
        return torch.tensor(self.names)


def explained(
    law: Law, loss: Loss, result: "Result", attempt: "Callable[[Batch], Result]"
) -> "Result":
    """Round the numbers of a failure as far as it persists, and add the code to reproduce it."""
    batch = result.batch
    assert batch is not None
    for digits in range(4):
        written = [[round(value, digits) for value in row] for row in batch.features.tolist()]
        rows, names = tuple(map(tuple, written)), tuple(batch.labels.tolist())
        of_batch = (batch.n, batch.dim, batch.classes, batch.structure, batch.seed)
        shorter = WrittenOut(*of_batch, rows, names)
        found = attempt(shorter)
        if found.error == result.error and (found.error or found.status == "failed"):
            batch, result = shorter, replace(found, status="failed")
            break
    return replace(result, code="\n".join(_code(law, loss, batch, result)))


def _code(law: Law, loss: Loss, batch: Batch, result: "Result") -> list[str]:
    calls = [] if "processes" in law.needs else _calls(law, loss, batch)
    chosen = _chosen(calls, result)
    small = [call for call in calls if call.features.numel() <= MOST]
    if law.show or not chosen or chosen[0][1].features.numel() > MOST:
        x, y = loss.given(batch.features, batch.labels)
        if small:
            x, y = small[0].features, small[0].labels
        shown = law.show or "print(loss(x, y))"
        needs_batch = re.search(r"\bx\b", shown) and not re.search(r"\by = ", shown)
        given = [f"x = {_tensor(x)}", f"y = {_tensor(y)}"] if needs_batch else []
        return [*_setup(loss, calls), *given, *shown.split("\n")]
    lines, x, y = _setup(loss, calls), None, None
    for number, (role, call) in enumerate(chosen):
        features = _shortest(loss, call, result)
        if number and law.change:
            lines.append(f"# {law.change}")
        if x is None or not _same(x, features):
            lines.append(f"x = {_tensor(features)}")
        if number == 0 or not _same(y, call.labels):
            lines.append(f"y = {_tensor(call.labels)}")
        x, y = features, call.labels
        lines.append(f"{_call(call)}  # {role}")
    return lines


def _calls(law: Law, loss: Loss, batch: Batch) -> list[Call]:
    """Return the calls of the loss that the law makes."""
    twin = loss.copy()
    twin.measurements = {}
    with suppress(Exception):
        vars(twin)["eps"] = loss.eps  # computing it would record further calls
    twin.calls = []
    with suppress(Exception):
        law(twin, batch)
    return twin.calls


def _chosen(calls: Sequence[Call], result: "Result") -> list[tuple[str, Call]]:
    """Return the calls that returned the two numbers, with their roles, or one that failed."""
    if result.error is not None:
        return [(result.error, call) for call in calls[-1:]]
    # The first call uses the original batch, the last call the batch as changed by the law.
    roles = [("expected", result.expected), ("found", result.found)]
    if result.relation in ("<", "<="):  # the first call should return the smaller value
        roles.reverse()
    elif result.relation in ("is finite", "is NaN"):
        roles = roles[1:]
    chosen: list[tuple[str, Call]] = []
    for place, (role, number) in enumerate(roles):
        used = [id(call) for _, call in chosen]
        giving = [call for call in calls if id(call) not in used and _gives(call, number)]
        if giving:
            chosen.append((f"{role} {number:.9g}", giving[-1 if place else 0]))
    return chosen


def _gives(call: Call, number: float | None) -> bool:
    if call.result is None or number is None:
        return False
    values = torch.cat([call.result.flatten(), call.result.mean().view(1)]).double()
    return bool((values.isnan() if math.isnan(number) else values == number).any())


def _setup(loss: Loss, calls: Sequence[Call]) -> list[str]:
    """Return lines that import the loss, or that say that it must be defined."""
    name, module = getattr(loss.fn, "__qualname__", ""), getattr(loss.fn, "__module__", None)
    lines = ["import torch"]
    if not (name.isidentifier() and module) or isinstance(loss.fn, partial):
        lines.append("# loss: what was checked")
    elif module == "__main__":
        lines.append(f"loss = {name}")
    else:
        lines.append(f"from {module} import {name} as loss")
    of_value = [call for call in calls if call.of == "value" and call.result is not None]
    if of_value and of_value[0].result is not None and of_value[0].result.ndim:
        lines += [
            "of_samples = loss",
            "loss = lambda x, y, **options: of_samples(x, y, **options).mean()",
        ]
    return lines


def _shortest(loss: Loss, call: Call, result: "Result") -> Tensor:
    """Return the features rounded to six digits if this barely changes the result."""
    if result.error is not None or call.result is None or not call.features.is_floating_point():
        return call.features
    written = [float(f"{value:.6g}") for value in call.features.flatten().tolist()]
    rounded = torch.tensor(written, dtype=call.features.dtype).view(call.features.shape)
    with suppress(Exception):
        apart = abs((result.found or 0.0) - (result.expected or 0.0))
        copy = loss.copy()
        again = copy.raw(rounded, call.labels, **call.options)
        before = copy.raw(call.features, call.labels, **call.options)
        if float((again - before).abs().max()) <= 0.01 * apart:
            return rounded
    return call.features


def _call(call: Call) -> str:
    options = "".join(f", {name}={_literal(value)}" for name, value in call.options.items())
    if call.of == "gradient":
        return f"print(torch.autograd.grad(loss(x.requires_grad_(), y{options}), x)[0])"
    return f"print(loss(x, y{options}))"


def _literal(value: Any) -> str:
    return _tensor(value) if isinstance(value, Tensor) else repr(value)


def _tensor(value: Tensor | None) -> str:
    if value is None:
        return "None"
    if value.dtype in (torch.int64, torch.bool):
        return f"torch.tensor({value.tolist()})"
    text = str(value.tolist()).replace("nan", "torch.nan").replace("inf", "torch.inf")
    if len(text) > 70:
        text = text.replace("], [", "],\n    [").replace("[[", "[\n    [").replace("]]", "],\n]")
    return f"torch.tensor({text}, dtype={value.dtype})"


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
