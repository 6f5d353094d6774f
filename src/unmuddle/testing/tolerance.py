"""How wrong a result may be: as wrong as honest work in its number format."""

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
    _assert_alike(got, truth)
    if not got.numel():
        return
    rounding = torch.finfo(got.dtype).eps * max(float(truth.abs().max()), terms)
    error, allowed = (_distance(value, truth) for value in (got, honest))
    if not error <= slack * (allowed + rounding):
        place = int((got.double() - truth.double()).abs().argmax())
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
    _assert_alike(got, truth)
    if not got.numel():
        return
    eps = torch.finfo(got.dtype).eps
    allowed_figures = _gradient_errors(honest, truth)
    for name, error in _gradient_errors(got, truth).items():
        allowed = slack * (allowed_figures[name] + eps)
        if not error <= allowed:
            raise AssertionError(f"gradient: {name} {error:.3g}, allowed {allowed:.3g}")


def saved_bytes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """How many bytes `fn(*args, **kwargs)` keeps for its backward, besides its own arguments.

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


def _assert_alike(got: Tensor, truth: Tensor) -> None:
    if got.shape != truth.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}")
    if not torch.equal(got.isfinite(), truth.isfinite()):
        raise AssertionError("not finite where the truth is, or the other way round")


def _distance(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).abs().max())


def _gradient_errors(gradient: Tensor, truth: Tensor) -> dict[str, float]:
    got, true = gradient.double().flatten(), truth.double().flatten()
    length = float(true.norm()) or 1.0
    cosine = float(got @ true) / (float(got.norm()) * length or 1.0)
    return {
        "relative error": float((got - true).norm()) / length,
        "error of direction": max(0.0, 1 - cosine) if true.any() else 0.0,
        "bias": abs(float((got - true).mean())) / (length / len(true) ** 0.5),
    }
