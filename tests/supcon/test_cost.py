"""What the loss costs, in operators and in the size of tensors: a timing would depend on the day."""

import pytest
import torch

from operators import Operators
from unmuddle import supcon_loss
from unmuddle.supcon.backends import tiled

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
