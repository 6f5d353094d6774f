"""`LedgerDataset`: a data set that also says which sample each item is."""

import operator
from collections.abc import Sized
from typing import Any

from torch.utils.data import Dataset


class LedgerDataset(Dataset[tuple[Any, Any, int]]):
    """Data set whose items `(x, y)` become `(x, y, id)`; the id is the index.

    Labels live in `UERM`, which goes by the id, so nothing in here ever changes: worker processes
    hold copies that stay right, `persistent_workers=True` too. Wrap the whole data set first and
    take subsets, samplers or splits of the wrapped one: their items keep their ids.

    Args:
        dataset: has `len` and gives `(x, y)` for an index.

    Raises:
        TypeError: it has no length, as an iterable-style data set, or an item is not a pair.

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
        """Return `(x, y, id)`; a negative index counts from the end, its id does not."""
        index = range(self._length)[operator.index(index)]
        item: Any = self.dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            kind = f"{len(item)} of them" if isinstance(item, (tuple, list)) else type(item)
            raise TypeError(f"dataset: expected items (x, y), got {kind}")
        x, y = item
        return x, y, index
