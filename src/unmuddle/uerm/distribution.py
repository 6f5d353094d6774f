"""Distributions over classes, with all entries or only the largest ones."""

from typing import NamedTuple

import torch
from torch import Tensor


class Distribution(NamedTuple):
    """A distribution over K classes for each of n samples, with all entries or the k largest.

    Attributes:
        probabilities: `(n, k)` entries; k = K if all entries are present.
        classes: `(n, k)` class of each entry; `None` if all are present and entry j is class j.
    """

    probabilities: Tensor
    classes: Tensor | None = None

    def prob_of(self, labels: Tensor) -> Tensor:
        """Return the probability `(n,)` of each label `(n,)`; 0 where it is not among the entries.

        Examples:
            >>> p = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.6, 0.4]])
            >>> Distribution(p).prob_of(torch.tensor([1, 2]))
            tensor([0.2000, 0.4000])
        """
        if self.classes is None:
            return self.probabilities.gather(1, labels[:, None])[:, 0].float()
        is_label = self.classes == labels[:, None]
        return torch.where(is_label, self.probabilities, 0).sum(1).float()

    def rival(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest probability `(n,)` of a class other than the label, and that class.

        Examples:
            >>> p = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.6, 0.4]])
            >>> Distribution(p).rival(torch.tensor([0, 0]))
            (tensor([0.2000, 0.6000]), tensor([1, 1]))
        """
        if self.classes is None:
            probability, best = self.probabilities.scatter(1, labels[:, None], -1).max(1)
            return probability.float(), best
        is_label = self.classes == labels[:, None]
        probability, entry = torch.where(is_label, -1, self.probabilities).max(1)
        return probability.float(), self.classes.gather(1, entry[:, None])[:, 0].long()

    def best(self) -> tuple[Tensor, Tensor]:
        """Return each sample's largest probability `(n,)` and its class `(n,)`."""
        probability, entry = self.probabilities.max(1)
        best = entry if self.classes is None else self.classes.gather(1, entry[:, None])[:, 0]
        return probability.float(), best.long()

    def margin(self, labels: Tensor) -> Tensor:
        """Return the probability `(n,)` of the label minus that of its rival, in [-1, 1].

        -1 means that another class is certain; 1 means that the label is certain.

        References:
            Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking,
            2020, arXiv 2001.10528 (there on logits).
        """
        return self.prob_of(labels) - self.rival(labels)[0]

    def rows(self, ids: Tensor) -> "Distribution":
        """Return the distributions of the samples `ids` `(m,)`."""
        classes = None if self.classes is None else self.classes[ids]
        return Distribution(self.probabilities[ids], classes)

    def with_label(self, labels: Tensor, num_classes: int) -> "Distribution":
        """Return the distribution with each sample's label `(n,)` among its entries.

        A label that is not among the k entries replaces the smallest entry. Its probability is an
        even share of what the entries leave to all other classes, but at most that of the replaced
        entry.

        Examples:
            >>> p = Distribution(torch.tensor([[0.6, 0.3]]), torch.tensor([[4, 1]]))
            >>> p.with_label(torch.tensor([2]), num_classes=7)
            Distribution(probabilities=tensor([[0.6000, 0.0200]]), classes=tensor([[4, 2]]))
        """
        if self.classes is None:
            return self
        p, k = self.probabilities.float(), self.classes.shape[1]
        missing = ~(self.classes == labels[:, None]).any(1, keepdim=True)
        least, entry = p.min(1, keepdim=True)
        share = (1 - p.sum(1, keepdim=True)).clamp(min=0) / max(num_classes - k, 1)
        label = labels[:, None].to(self.classes.dtype)
        return Distribution(
            torch.where(missing, p.scatter(1, entry, share.minimum(least)), p),
            torch.where(missing, self.classes.scatter(1, entry, label), self.classes),
        )


def to_probabilities(predictions: Distribution, num_classes: int) -> Distribution:
    """Return detached predictions if they are probabilities of K classes.

    Raises:
        ValueError: the type or shape is invalid, or a row has a negative or non-finite entry, or
            sums to more than 1.
    """
    held = getattr(predictions, "probabilities", None)
    if not isinstance(predictions, Distribution) or not isinstance(held, Tensor):
        got = f" of {type(held).__name__}" if isinstance(predictions, Distribution) else ""
        raise ValueError(
            f"predictions: expected Distribution(tensor), got {type(predictions).__name__}{got}"
        )
    p, classes = predictions.probabilities.detach(), predictions.classes
    is_whole = classes is None and p.shape[1:] == (num_classes,)
    is_short = classes is not None and p.ndim == 2 and classes.shape == p.shape
    if not p.is_floating_point() or not (is_whole or is_short):
        raise ValueError(
            f"predictions: expected floats of shape (n, K) = (n, {num_classes}), "
            f"got {p.dtype} {tuple(p.shape)}"
        )
    wrong = ~((p >= 0).all(1) & (p.sum(1, dtype=torch.float32) < 1.01))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"predictions: expected probabilities, got {p[row].tolist()!s:.60} in row {row}"
        )
    return Distribution(p, classes)
