"""`FeatureQueue`: embeddings of past batches as additional keys to contrast with."""

from typing import Any

import torch
from torch import Tensor, nn

from unmuddle.distributed import is_distributed
from unmuddle.supcon.inputs import Batch, check_shape


class FeatureQueue(nn.Module):
    """First-in, first-out queue of the last `size` embeddings and their labels (MoCo).

    Pass `keys()` to the loss, and call `enqueue` after the loss. If `enqueue` is called before it,
    the batch is contrasted with itself. Empty slots are labelled `ignore_index`: the loss ignores
    them, and shapes never change. The contents are buffers, which are part of the `state_dict` and
    moved by `.to`.

    Args:
        size: number of embeddings M.
        dim: embedding dimension D.
        num_classes: C for `(B, C)` soft labels; None for integer labels or no labels.
        ignore_index: must equal that of the loss. It cannot be 0 with soft labels, where a row of
            zeros belongs to no class but is not ignored.
        gather: enqueue the embeddings of all processes, in rank order. Every process then holds the
            same queue, as a loss with `gather=True` requires.

    Examples:
        >>> queue = FeatureQueue(size=4, dim=2)
        >>> queue.enqueue(torch.ones(3, 2), torch.tensor([5, 5, 6]))
        >>> keys, labels = queue.keys()
        >>> labels.tolist()
        [5, 5, 6, -100]

    References:
        He et al., Momentum Contrast, 2020, arXiv 1911.05722.
    """

    features: Tensor
    labels: Tensor
    cursor: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        num_classes: int | None = None,
        *,
        ignore_index: int = -100,
        gather: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim), ("num_classes", num_classes)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if num_classes is not None and ignore_index == 0:
            raise ValueError("ignore_index: with soft labels 0 means membership in no class")
        self.ignore_index = ignore_index
        self.gather = gather
        self.register_buffer("features", torch.zeros(size, dim))
        shape, dtype = (size,), torch.int64
        if num_classes is not None:
            shape, dtype = (size, num_classes), torch.get_default_dtype()
        self.register_buffer("labels", torch.full(shape, ignore_index, dtype=dtype))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ignored", torch.tensor(ignore_index))  # checked when loading a state

    def keys(self) -> tuple[Tensor, Tensor]:
        """Return copies of the embeddings `(M, D)` and their labels `(M,)` or `(M, C)`."""
        return self.features.clone(), self.labels.clone()

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Replace the oldest embeddings with new ones, without gradient.

        Args:
            features: `(B, D)`, or `(B, V, D)` for V views of each sample.
            labels: `(B,)` or `(B, C)`. If None, the embeddings are negatives of every anchor.

        Raises:
            ValueError: a shape is invalid. The queue is not changed.
            TypeError: see `supcon_loss`.
            RuntimeError: another process rejected its input (`gather=True`).
        """
        size, dim = self.features.shape
        if labels is None:
            # A label that matches no other: an unused class, or a soft label of zeros.
            nobody = torch.iinfo(self.labels.dtype).min if self.labels.ndim == 1 else 0
            labels = self.labels.new_full((len(features), *self.labels.shape[1:]), nobody)
        batch = Batch(features, labels)
        batch = batch.gathered()[0] if self.gather and is_distributed() else batch.checked()
        rows, row_labels, *_ = batch.contrast_set(self.ignore_index)
        assert row_labels is not None
        check_shape("features", rows, (len(rows), dim), "(N, D)")
        if row_labels.shape[1:] != self.labels.shape[1:]:
            held = "integer labels" if self.labels.ndim == 1 else f"C = {self.labels.shape[1]}"
            raise ValueError(
                f"labels: expected {held}, as the queue was built with num_classes, got "
                f"{tuple(torch.as_tensor(labels).shape)}"
            )

        slots = (self.cursor + torch.arange(len(rows), device=rows.device)) % size
        newest = slice(-size, None)
        self.features.index_copy_(0, slots[newest], rows[newest].to(self.features))
        self.labels.index_copy_(0, slots[newest], row_labels[newest].to(self.labels))
        self.cursor.copy_((self.cursor + len(rows)) % size)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A state is loaded whole or not at all.
        for name, value in self.state_dict().items():
            saved = state_dict.get(prefix + name)
            if not isinstance(saved, Tensor) or saved.shape != value.shape:
                found = None if saved is None else tuple(saved.shape)
                raise RuntimeError(f"{prefix}{name}: expected {tuple(value.shape)}, got {found}")
        saved = int(state_dict[f"{prefix}ignored"])
        if saved != self.ignore_index:
            raise RuntimeError(
                f"{prefix}ignored: saved with ignore_index={saved}, not {self.ignore_index}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Options shown by `repr`."""
        size, dim = self.features.shape
        return f"size={size}, dim={dim}, gather={self.gather}"
