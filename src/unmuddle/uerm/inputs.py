"""Validation of integers that users pass in."""

import operator
from typing import Any

import torch
from torch import Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def to_integers(name: str, values: Tensor, stop: int, size: int | None = None) -> Tensor:
    """Return `values` as int64 if they are `(size,)` integers in `[0, stop)`."""
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:  # such as class names
        raise ValueError(f"{name}: expected a vector of integers, got {values!r:.40}") from error
    if values.ndim != 1 or (len(values) and values.dtype not in INTEGERS):
        raise ValueError(
            f"{name}: expected a vector of integers, got {values.dtype} {tuple(values.shape)}"
        )
    if size is not None and len(values) != size:
        raise ValueError(f"{name}: expected shape (n,) = ({size},), got {tuple(values.shape)}")
    values = values.to(torch.int64)
    outside = values[(values < 0) | (values >= stop)]
    if len(outside):
        raise ValueError(f"{name}: expected integers from 0 to {stop - 1}, got {int(outside[0])}")
    return values


def whole(name: str, value: Any) -> int:
    """Return `value` as an int if it is a non-negative integer, of any library's type."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {value!r}")
    return number
