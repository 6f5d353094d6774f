"""Error budgets: a result may have the error of a plain reference computation in its dtype."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def assert_within_budget(
    got: Tensor, truth: Tensor, honest: Tensor, *, terms: float = 0.0, slack: float = 4.0
) -> None:
    """Assert `max |got - truth| <= slack (max |honest - truth| + eps max(|truth|, terms))`.

    The reference computation `honest` may be accurate by chance. The budget therefore also allows
    `slack` rounding errors of the largest value, or of `terms` if that is larger.

    Args:
        got: result under test.
        truth: the same result computed in fp64.
        honest: the same result from a plain reference computation in the dtype of `got`.
        terms: magnitude of the numbers that cancel in the result.
        slack: factor by which the error of `honest` may be exceeded.

    Raises:
        AssertionError: the error exceeds the budget. The message contains the error, the budget
            and the position of the largest error.

    Examples:
        >>> x = torch.rand(100)
        >>> assert_within_budget(x.sum(), x.double().sum(), x.flip(0).sum())
    """
    if not (slack > 0 and 0 <= terms < math.inf):
        raise ValueError(f"slack, terms: expected above 0, and finite, got {slack}, {terms}")
    got, truth, honest, eps = _finite(got, truth, honest)
    if not got.numel():
        return
    rounding = eps * max(float(truth.abs().max()), terms)
    error, allowed = (float((value - truth).abs().max()) for value in (got, honest))
    if not error <= slack * (allowed + rounding):
        place = int((got - truth).abs().argmax())
        raise AssertionError(
            f"error {error:.3g}, allowed {slack * (allowed + rounding):.3g} "
            f"(reference computation: {allowed:.3g}); worst at {place}: "
            f"got {got.flatten()[place]}, expected {truth.flatten()[place]}"
        )


def assert_gradient_within_budget(
    got: Tensor, truth: Tensor, honest: Tensor, *, slack: float = 4.0
) -> None:
    """Assert that the relative error, the error of direction and the bias of a gradient are small.

    Let `d = got - truth`. Each of these figures may be at most `slack` times the same figure of the
    reference gradient `honest`, plus `slack eps`:

        |d| / |truth|              relative error
        1 - cos(got, truth)        error of direction
        |mean d| / rms(truth)      bias, which does not average out in training

    Args:
        got: gradient under test.
        truth: the same gradient computed in fp64.
        honest: the same gradient from a plain reference computation in the dtype of `got`.
        slack: factor by which the errors of `honest` may be exceeded.

    Raises:
        AssertionError: a figure exceeds its budget. The message contains the figure and the budget.

    Examples:
        >>> truth = torch.randn(100, dtype=torch.double)
        >>> assert_gradient_within_budget(truth.float(), truth, truth.float())
    """
    got, truth, honest, eps = _finite(got, truth, honest)
    if not got.numel():
        return
    allowed_figures = _gradient_errors(honest, truth)
    for name, error in _gradient_errors(got, truth).items():
        allowed = slack * (allowed_figures[name] + eps)
        if not error <= allowed:
            raise AssertionError(f"gradient: {name} {error:.3g}, allowed {allowed:.3g}")


def saved_bytes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Count the bytes that `fn(*args, **kwargs)` saves for backward, excluding its arguments.

    A storage that is shared by several saved tensors is counted once. Tensors saved by a custom
    `torch.autograd.Function` are counted too. Memory that is freed within the call is not counted.

    Examples:
        >>> x = torch.randn(1000, requires_grad=True)
        >>> saved_bytes(lambda x: x.exp().sum(), x)
        4000
    """
    given = {
        value.untyped_storage().data_ptr()
        for value in (*args, *kwargs.values())
        if isinstance(value, Tensor)
    }
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    # Keep a reference to the result: otherwise, a storage could be freed and counted twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = fn(*args, **kwargs)
    del result
    return sum(kept.values())


def _finite(got: Tensor, truth: Tensor, honest: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the tensors in fp64, with 0 for equal infinities and NaN, and the eps of `got`.

    Raises:
        AssertionError: shapes differ, or a tensor is finite where `truth` is not, or vice versa.
        TypeError: an argument is not a tensor of a real floating-point dtype.
    """
    given = {"got": got, "truth": truth, "honest": honest}
    for name, value in given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a tensor of floating point numbers, got {kind}")
        if value.shape != truth.shape:
            raise AssertionError(
                f"{name}: shape {tuple(value.shape)}, expected {tuple(truth.shape)}"
            )
        if not torch.equal(value.isfinite(), truth.isfinite()):
            raise AssertionError(f"{name}: not finite where the truth is, or the other way round")
    infinite = ~truth.isfinite()
    kinds = [v[infinite].double().nan_to_num(0.0, math.inf, -math.inf) for v in (got, truth)]
    if not torch.equal(*kinds):
        raise AssertionError("got: not the infinity of the truth")
    got_, truth_, honest_ = (
        value.detach().double().masked_fill(infinite, 0) for value in given.values()
    )
    return got_, truth_, honest_, torch.finfo(got.dtype).eps


def _gradient_errors(gradient: Tensor, truth: Tensor) -> dict[str, float]:
    got, true = gradient.flatten(), truth.flatten()
    length = float(true.norm()) or 1.0
    cosine = float(got @ true) / (float(got.norm()) * length or 1.0)
    return {
        "relative error": float((got - true).norm()) / length,
        "error of direction": max(0.0, 1 - cosine) if true.any() else 0.0,
        "bias": abs(float((got - true).mean())) / (length / len(true) ** 0.5),
    }
