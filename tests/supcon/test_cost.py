"""What the loss costs, in operators and in the size of tensors: a timing would depend on the day."""

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType

import pytest
import torch

import unmuddle
from tests.helpers.operators import Operators
from unmuddle import SupConLoss, supcon_loss
from unmuddle.supcon.backends import tiled

PACKAGE = Path(unmuddle.__file__).parent
IN, NEGATIVES = {"positives": "in"}, {"denominator": "negatives"}


def operators_of(n: int, impl: str, **options) -> tuple[Operators, Operators]:
    """Of the forward and of the backward."""
    x = torch.randn(n, 4, requires_grad=True)
    with Operators() as forward:
        value = supcon_loss(x, torch.arange(n) % 8, impl=impl, **options)
    with Operators() as backward:
        value.backward()
    return forward, backward


@pytest.mark.parametrize(("at_most", "options"), [(32, {}), (36, IN), (42, NEGATIVES)])
def test_a_small_batch_takes_few_operators(at_most: int, options) -> None:
    forward, backward = operators_of(256, "dense", **options)
    called = forward.called + backward.called
    assert len(called) <= at_most, called


@pytest.mark.parametrize(("a_tile", "options"), [(7, {}), (18, IN), (18, NEGATIVES)])
def test_a_large_batch_takes_few_operators_a_tile_and_no_tensor_of_all_pairs(
    a_tile, options
) -> None:
    n = 8192
    blocks = n // tiled.TILE
    tiles = blocks * (blocks + 1) // 2
    for operators in operators_of(n, "tiled", **options):
        assert len(operators.called) <= 40 + a_tile * tiles
        assert operators.largest <= tiled.CACHE_OF_LARGE < n * n / 15


@pytest.mark.parametrize(("n", "calls", "files", "changes"), [(8, 25, 6, 12), (700, 60, 7, 18)])
def test_a_call_is_short_to_follow(n: int, calls: int, files: int, changes: int) -> None:
    """Functions of the package that forward and backward call, and how often the file changes."""
    walk: list[str] = []

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and PACKAGE in Path(frame.f_code.co_filename).parents:
            walk.append(frame.f_code.co_filename)

    loss, labels = SupConLoss(), torch.arange(n) % 4
    for profile in (None, record):  # what is imported or cached in a first call is not counted
        x = torch.randn(n, 32, requires_grad=True)
        sys.setprofile(profile)
        loss(x, labels).backward()
        sys.setprofile(None)
    assert len(walk) <= calls
    assert len(set(walk)) <= files
    assert sum(a != b for a, b in pairwise(walk)) <= changes
