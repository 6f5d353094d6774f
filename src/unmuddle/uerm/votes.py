"""What the labels of a sample's neighbours in the embedding space say of its own."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

NEIGHBOURS = 30


class NeighbourVotes(nn.Module):
    """Shares of the labels among the nearest of the last Q embeddings, by cosine.

    A sample has no vote on itself. The labels are those as given, so that no relabel votes for
    another.

    Args:
        feature_dim: D of the embeddings.
        size: Q, how many embeddings of earlier batches are kept; 4 Q D bytes.
    """

    keys: Tensor
    ids: Tensor
    cursor: Tensor

    def __init__(self, feature_dim: int, size: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, feature_dim, device=device))
        # The sample of each key; -1: none yet.
        self.register_buffer("ids", torch.full((size,), -1, device=device))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, features: Tensor, ids: Tensor, one_hot: Tensor) -> Tensor:
        """Votes of a batch `(N, K)`; NaN where there are not enough neighbours yet.

        Args:
            features: `(N, D)`.
            ids: `(N,)` their samples.
            one_hot: `(Q, K)` labels of the kept keys, anything where there is no key yet.
        """
        similar = normalize(features.float()) @ self.keys.T
        other = (self.ids >= 0) & (self.ids != ids[:, None])
        nearest = torch.where(other, similar, -2.0).topk(min(NEIGHBOURS, len(self.keys)))
        enough = nearest.values[:, -1] > -2.0  # also False for NaN
        return torch.where(enough[:, None], one_hot[nearest.indices].mean(1), torch.nan)

    def enqueue(self, features: Tensor, ids: Tensor) -> None:
        """Keep the embeddings of a batch in the place of the oldest; rows that overflowed, not."""
        size = len(self.keys)
        keys = normalize(features.float())[-size:]
        places = (self.cursor + torch.arange(len(keys), device=keys.device)) % size
        finite = keys.isfinite().all(1)
        self.keys[places] = torch.where(finite[:, None], keys, 0)
        self.ids[places] = torch.where(finite, ids[-size:], -1)
        self.cursor += len(keys)
