"""`LedgerDataset`: ids that stay, through workers, subsets and samplers."""

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from unmuddle.uerm import LedgerDataset


def data(n: int = 10) -> LedgerDataset:
    return LedgerDataset(TensorDataset(torch.arange(n) * 10, torch.arange(n) % 3))


def test_an_item_knows_its_id() -> None:
    assert len(data()) == 10
    assert [int(v) for v in data()[4]] == [40, 1, 4]
    assert [int(v) for v in data()[-1]] == [90, 0, 9]
    with pytest.raises(IndexError):
        data()[10]


class Batched(TensorDataset):
    """Reads a batch at once."""

    def __getitem__(self, index: object):
        raise AssertionError("read alone")

    def __getitems__(self, ids: list[int]) -> list[tuple[torch.Tensor, ...]]:
        return [*zip(*(tensor[ids] for tensor in self.tensors), strict=True)]


def test_a_batch_is_read_at_once_where_the_data_set_can() -> None:
    batched = LedgerDataset(Batched(torch.arange(10) * 10, torch.arange(10) % 3))
    for ids in ([], [4], [7, 2, 2, -1]):
        assert batched.__getitems__(ids) == data().__getitems__(ids) == [data()[i] for i in ids]
    order = torch.tensor([3, 9, 0, 3])
    for found, expected in zip(
        DataLoader(batched, 2, sampler=order), DataLoader(data(), 2, sampler=order), strict=True
    ):
        assert all(map(torch.equal, found, expected))
    with pytest.raises(IndexError):
        batched.__getitems__([10])


def test_an_overridden_item_is_not_read_past() -> None:
    class Negative(Batched):
        def __getitem__(self, index: int):
            return tuple(-tensor[index] for tensor in self.tensors)

    class Doubled(LedgerDataset):
        def __getitem__(self, index: int):
            x, y, sample = super().__getitem__(index)
            return 2 * x, y, sample

    class Either(Batched):
        __getitem__ = TensorDataset.__getitem__
        __getitems__ = Batched.__getitems__

    tensors = torch.arange(10) * 10, torch.arange(10) % 3
    assert LedgerDataset(Negative(*tensors)).__getitems__([4]) == [(-40, -1, 4)]
    assert Doubled(Either(*tensors)).__getitems__([-6]) == [(80, 1, 4)]


def test_ids_survive_subsets_splits_and_samplers() -> None:
    whole = data()
    parts = [
        Subset(whole, [7, 2]),
        *random_split(whole, [4, 6], torch.Generator().manual_seed(0)),
    ]
    for part in parts:
        for x, _, i in DataLoader(part, batch_size=3, shuffle=True):
            assert torch.equal(x, 10 * i)
    sampler = WeightedRandomSampler([1.0] * 10, 20)
    x, _, ids = next(iter(DataLoader(whole, batch_size=20, sampler=sampler)))
    assert torch.equal(x, 10 * ids)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_give_the_same_ids_every_epoch(method: str) -> None:
    loader = DataLoader(
        data(), batch_size=4, num_workers=2, persistent_workers=True, multiprocessing_context=method
    )
    for _ in range(2):
        x, y, ids = (torch.cat(part) for part in zip(*loader, strict=True))
        assert ids.tolist() == list(range(10))
        assert torch.equal(x, 10 * ids)
        assert torch.equal(y, ids % 3)


class Stream(IterableDataset):
    def __iter__(self):
        yield 0, 0


def test_what_cannot_be_wrapped_is_named() -> None:
    with pytest.raises(TypeError, match="expected a map-style data set with a length, got Stream"):
        LedgerDataset(Stream())
    with pytest.raises(TypeError, match=r"expected items \(x, y\), got 3 of them"):
        LedgerDataset(TensorDataset(*[torch.zeros(2)] * 3))[0]
    with pytest.raises(TypeError, match=r"expected items \(x, y\), got <class 'torch.Tensor'>"):
        LedgerDataset(torch.zeros(3))[0]
    with pytest.raises(TypeError, match="'slice' object cannot be interpreted as an integer"):
        LedgerDataset(TensorDataset(torch.zeros(3), torch.zeros(3)))[0:2]
