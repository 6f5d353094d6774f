"""Running means: order, batches and halves make no difference; what top-k keeps and costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmuddle import UERM
from unmuddle.uerm.history import DenseHistory, TopKHistory


def new(kind: str, samples: int, size: int, k: int, dtype=torch.float32):
    if kind == "full":
        return DenseHistory(samples, size, dtype)
    return TopKHistory(samples, size, k, dtype)


def means(history: DenseHistory | TopKHistory) -> torch.Tensor:
    """All entries `(n, size)`."""
    if isinstance(history, DenseHistory):
        return history.mean.float()
    whole = torch.zeros(len(history.mean), history.size)
    return whole.scatter(1, history.classes.long(), history.mean.float())


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 30), kind=st.sampled_from(["full", "topk"]))
def test_neither_order_nor_batches_change_a_bit(seed: int, rows: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, (rows,), generator=g)
    p = torch.randn(rows, 6, generator=g).mul(3).softmax(1)
    order = torch.randperm(rows, generator=g)
    one, other = new(kind, 5, 6, 6), new(kind, 5, 6, 6)
    one.add(ids, p)
    for batch in order.split(4):
        other.add(ids[batch], p[batch])
    one.put(one.fold(0.5)), other.put(other.fold(0.5))
    assert torch.equal(means(one), means(other))
    assert torch.equal(one.seen, other.seen)
    for sample in range(5):
        mean = p[ids == sample].mean(0) if (ids == sample).any() else torch.zeros(6)
        # Half a unit for the entry, and half a unit for each of the six in the sum it is divided by.
        torch.testing.assert_close(means(one)[sample], mean, atol=3.5 * 2**-16, rtol=0)


@pytest.mark.parametrize("k", [1, 3])
def test_topk_keeps_the_largest_entries(k: int) -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(4, 50, generator=g).mul(2).softmax(1)
    full, short = new("full", 4, 50, k), new("topk", 4, 50, k)
    for _ in range(2):
        for history in (full, short):
            history.add(torch.arange(4), p)
            history.put(history.fold(0.5))
    top = full.mean.topk(k)
    kept = short.fold(0.5).mean
    assert kept.classes is not None
    assert torch.equal(kept.classes.long().sort(1).values, top.indices.sort(1).values)
    torch.testing.assert_close(means(short).topk(k).values, top.values)


def test_a_class_beyond_32767_keeps_its_number() -> None:
    history = new("topk", 2, 40_000, 2)
    p = torch.zeros(1, 40_000)
    p[0, 39_999] = 1
    history.add(torch.tensor([1]), p)
    assert history.fold(0.5).mean.classes[1, 0] == 39_999


def test_a_row_of_nan_does_not_count() -> None:
    for kind in ("full", "topk"):
        history = new(kind, 2, 3, 3)
        history.add(
            torch.tensor([0, 0, 1]),
            torch.tensor([[torch.nan] * 3, [0.5, 0.25, 0.25], [torch.nan] * 3]),
        )
        history.put(history.fold(0.5))
        assert means(history)[0].tolist() == [0.5, 0.25, 0.25]
        assert history.seen.tolist() == [1, 0]


def state_bytes(uerm: UERM) -> int:
    return sum(v.numel() * v.element_size() for v in uerm.state_dict().values())


def test_imagenet_fits_into_a_gigabyte() -> None:
    # The state of n samples is n times a constant, so 1,000 samples tell of 1.28 million.
    labels = torch.zeros(1000, dtype=torch.int64)
    few = UERM(labels[:500], 1000, top_k=32, dtype=torch.float16)
    more = UERM(labels, 1000, top_k=32, dtype=torch.float16)
    a_sample = (state_bytes(more) - state_bytes(few)) / 500
    assert a_sample == 32 * (2 + 2 + 4 + 2) + (4 + 4) + 2 * 4 + 2 * 8
    assert 1_281_167 * a_sample + state_bytes(few) < 10**9


def test_state_grows_with_samples_times_classes() -> None:
    def a_sample(classes: int, dtype: torch.dtype) -> float:
        sizes = [
            state_bytes(UERM(torch.zeros(n, dtype=torch.int64), classes, dtype=dtype))
            for n in (100, 200)
        ]
        return (sizes[1] - sizes[0]) / 100

    for dtype, width in ((torch.float32, 8), (torch.float16, 6)):
        assert a_sample(9, dtype) - a_sample(8, dtype) == width
