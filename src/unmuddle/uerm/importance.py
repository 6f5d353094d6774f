"""Importance of samples in the Self-Cure Network, computed from their features."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def rank_penalty(importance: Tensor, *, high_fraction: float = 0.7, delta: float = 0.15) -> Tensor:
    """`max(0, delta - (mean of the high group - mean of the low group))`.

    The high group is the `high_fraction` of the batch with the largest importance. The penalty
    keeps importances from collapsing to one value.

    Args:
        importance: `(N,)` in [0, 1].
        high_fraction: share of the batch that forms the high group.
        delta: minimum difference between the means of the groups.

    Returns:
        Scalar; 0 when one of the groups is empty.

    References:
        Wang et al., Suppressing Uncertainties for Large-Scale Facial Expression Recognition, 2020,
        arXiv 2002.10392.
    """
    ordered = importance.sort(descending=True).values
    high, low = ordered.tensor_split([round(high_fraction * len(importance))])
    if len(high) == 0 or len(low) == 0:
        return 0 * importance.sum()
    return (delta - (high.mean() - low.mean())).clamp(min=0)


class AttentionHead(nn.Module):
    """Importance of a sample from its features: `a = sigmoid(w·x + b)`; its uncertainty is `1 - a`.

    Wang et al. 2020 scale the classifier's logits by `a`. This trains the head, but flattens the
    margins that relabeling compares. Here, `loss` trains the head in the same way on detached
    logits and features, so it does not affect the classifier (our choice).
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the importances `(N,)` of features `(N, D)`."""
        features = features.detach().to(self.linear.weight.dtype)
        return self.linear(features)[:, 0].float().sigmoid()

    @staticmethod
    def loss(importance: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Logit-weighted cross-entropy plus `rank_penalty`; its gradient reaches the head only."""
        scaled = importance[:, None] * logits.detach().float()
        losses = cross_entropy(scaled, labels, reduction="sum") / max(len(labels), 1)
        return losses + rank_penalty(importance)
