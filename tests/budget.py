"""Error budgets: a result may be no further from the fp64 truth than honest work in its dtype."""

import torch
from torch import Tensor


def assert_within_budget(
    got: Tensor, truth: Tensor, honest: Tensor, *, terms: float = 0.0, slack: float = 4.0
) -> None:
    """`got` is as close to the fp64 `truth` as `slack` times an `honest` same-dtype computation.

    The honest computation may be right by luck, so `slack` roundings are granted: of the largest
    value, or of the `terms` that cancel in it, if those are larger.
    """
    assert got.shape == truth.shape, f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert torch.equal(got.isfinite(), truth.isfinite())
    rounding = torch.finfo(got.dtype).eps * max(float(truth.abs().max()), terms)
    error, allowed = (float((value.double() - truth).abs().max()) for value in (got, honest))
    assert error <= slack * (allowed + rounding), f"error {error:.3g}, honest {allowed:.3g}"
