"""`LedgerDataset`: a data set that also returns the id of each sample."""

import operator
from collections.abc import Sequence, Sized
from typing import Any

from torch.utils.data import Dataset


class LedgerDataset(Dataset[tuple[Any, Any, int]]):
    """Wrapper of a data set that returns `(x, y, id)` instead of `(x, y)`; the id is the index.

    `UERM` stores the labels and looks them up by id, so this data set never changes. Copies in
    worker processes stay valid, even with `persistent_workers=True`. Wrap the whole data set first,
    then create subsets, samplers or splits from the wrapper; their items keep their ids.

    Args:
        dataset: map-style data set with a length, which returns `(x, y)` for an index.

    Raises:
        TypeError: the data set has no length (an iterable-style data set), or an item is not a
            pair.

    Examples:
        >>> import torch
        >>> from torch.utils.data import Subset, TensorDataset
        >>> data = LedgerDataset(TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])))
        >>> Subset(data, [2])[0][1:]
        (tensor(1), 2)
    """

    def __init__(self, dataset: Dataset[tuple[Any, Any]]) -> None:
        if not isinstance(dataset, Sized):
            raise TypeError(
                "dataset: expected a map-style data set with a length, got "
                f"{type(dataset).__name__}"
            )
        self.dataset = dataset
        self._length = len(dataset)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        """Return `(x, y, id)`; a negative index counts from the end, but ids are never negative."""
        index = range(self._length)[operator.index(index)]
        return _with_id(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any, int]]:
        """Return the items of a batch, read at once if the data set has `__getitems__`."""
        dataset: Any = self.dataset
        if not (_reads_batches(self) and _reads_batches(dataset)):
            return [self[index] for index in indices]
        ids = [range(self._length)[operator.index(index)] for index in indices]
        items = dataset.__getitems__(ids)
        return [_with_id(item, index) for item, index in zip(items, ids, strict=True)]


def _reads_batches(dataset: object) -> bool:
    """Return whether there is a `__getitems__`, and no subclass overrides `__getitem__` alone."""
    for kind in type(dataset).__mro__:
        if "__getitems__" in vars(kind):
            return True
        if "__getitem__" in vars(kind):
            return False
    return False


def _with_id(item: Any, index: int) -> tuple[Any, Any, int]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        kind = f"{len(item)} of them" if isinstance(item, (tuple, list)) else type(item)
        raise TypeError(f"dataset: expected items (x, y), got {kind}")
    x, y = item
    return x, y, index
