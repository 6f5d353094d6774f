"""Error budgets: a result may be as wrong as an honest computation in its format."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def assert_within_budget(
    got: Tensor, truth: Tensor, honest: Tensor, *, terms: float = 0.0, slack: float = 4.0
) -> None:
    """`max |got - truth| <= slack (max |honest - truth| + eps max(|truth|, terms))`.

    The honest computation may be right by luck, so `slack` roundings are granted besides: of the
    largest value, or of the `terms` that cancel in it, if those are larger.

    Args:
        got: what is tested.
        truth: the same in fp64.
        honest: the same as plainly as can be in the number format of `got`.
        terms: size of the numbers that cancel in the result.
        slack: how many times the honest error is allowed.

    Raises:
        AssertionError: with the error, what is allowed, and where the worst is.

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
            f"(an honest computation: {allowed:.3g}); worst at {place}: "
            f"got {got.flatten()[place]}, expected {truth.flatten()[place]}"
        )


def assert_gradient_within_budget(
    got: Tensor, truth: Tensor, honest: Tensor, *, slack: float = 4.0
) -> None:
    """A gradient is as good as an honest one: in length, in direction, and without a bias.

    With `d = got - truth` and `d'` the same of the honest gradient, each of these may be `slack`
    times as large as for the honest one, and `slack eps` besides:

        |d| / |truth|              the whole error
        1 - cos(got, truth)        the direction
        |mean d| / rms(truth)      an error of one sign, which does not average out in training

    Args:
        got: what is tested.
        truth: the same in fp64.
        honest: the same as plainly as can be in the number format of `got`.
        slack: how many times the honest errors are allowed.

    Raises:
        AssertionError: with the figure that is too large, and what is allowed.

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
    """Count the bytes that `fn(*args, **kwargs)` keeps for its backward, without its arguments.

    Storage that several saved tensors share counts once; what is saved by a custom function counts
    too. Memory that is used and given back within the call does not.

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

    # The result is held on to, so that no storage is freed and counted twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = fn(*args, **kwargs)
    del result
    return sum(kept.values())


def _finite(got: Tensor, truth: Tensor, honest: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return all three in fp64, 0 for equal infinities and NaN, and the rounding of `got`.

    Raises:
        AssertionError: shapes differ, or one is finite where the truth is not.
        TypeError: one is no tensor of real floating point numbers.
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
