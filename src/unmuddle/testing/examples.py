"""Batches for checking laws, each defined by a few small numbers.

Small numbers shrink well. The `repr` of a batch is code that recreates it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Structure = Literal["random", "clustered", "duplicates", "antipodal"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)


@dataclass(frozen=True)
class Batch:
    """N embeddings and their integer labels.

    Attributes:
        n: N.
        dim: D.
        classes: number of classes. Labels run from 0 to `classes - 1`, and their counts differ by
            at most 1. 1: all labels are equal; n: all labels are different.
        structure: `"random"`: independent normal rows; `"clustered"`: rows around a centre for each
            class; `"duplicates"`: every row occurs twice; `"antipodal"`: the negative of every row
            occurs too.
        seed: seed of all random numbers.

    Examples:
        >>> batch = Batch(n=4, dim=3, classes=2)
        >>> batch.features.shape, batch.labels.sort().values
        (torch.Size([4, 3]), tensor([0, 0, 1, 1]))
    """

    n: int
    dim: int
    classes: int
    structure: Structure = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n, self.dim, self.classes) < 1 or self.structure not in STRUCTURES:
            raise ValueError(f"expected n, dim, classes >= 1 and one of {STRUCTURES}, got {self}")

    def generator(self, purpose: int = 0) -> torch.Generator:
        """Return a random generator that is seeded by the batch and the purpose."""
        return torch.Generator().manual_seed(1000 * self.seed + purpose)

    @property
    def features(self) -> Tensor:
        """Rows `(N, D)`, fp64; none is zero."""
        g = self.generator()
        rows = self.normal(self.n, self.dim, purpose=1)
        if self.structure == "clustered":
            centres = torch.randn(self.classes, self.dim, generator=g, dtype=torch.float64)
            rows = 3 * centres[self.labels] + 0.1 * rows
        elif self.structure != "random":
            half = rows[: -(-self.n // 2)]
            sign = -1 if self.structure == "antipodal" else 1
            rows = torch.cat([half, sign * half])[: self.n]
        return rows

    @property
    def labels(self) -> Tensor:
        """Labels `(N,)`, int64."""
        order = torch.randperm(self.n, generator=self.generator(2))
        return (torch.arange(self.n) % self.classes)[order]

    def normal(self, *shape: int, purpose: int) -> Tensor:
        """Return independent standard normal numbers in fp64."""
        return torch.randn(*shape, generator=self.generator(purpose), dtype=torch.float64)


@dataclass(frozen=True)
class ContrastiveBatch:
    """Views of samples, with all other inputs that a contrastive loss may take.

    Attributes:
        batch: B samples; `batch.features` are the centres of their views.
        views: V, the number of views per sample.
        keys: M, the number of keys.
    """

    batch: Batch
    views: int = 2
    keys: int = 0

    @property
    def features(self) -> Tensor:
        """Rows `(B, V, D)`, fp64."""
        centres = self.batch.features[:, None]
        return centres + 0.3 * self.batch.normal(
            self.batch.n, self.views, self.batch.dim, purpose=3
        )

    @property
    def labels(self) -> Tensor:
        """Labels `(B,)`, int64."""
        return self.batch.labels

    @property
    def soft_labels(self) -> Tensor:
        """Distributions `(B, C)` over classes, one per sample; C is at least 2."""
        logits = self.batch.normal(self.batch.n, max(self.batch.classes, 2), purpose=4)
        return (2 * logits).softmax(1)

    @property
    def multi_hot_labels(self) -> Tensor:
        """Memberships `(B, C)` of 0 and 1; a sample has its own class and random others."""
        own = torch.nn.functional.one_hot(self.labels, max(self.batch.classes, 2)).double()
        others = self.batch.normal(*own.shape, purpose=5) > 0.5
        return own.maximum(others.double())

    @property
    def ignored_labels(self) -> Tensor:
        """Labels `(B,)`, int64, some of them -100."""
        ignored = self.batch.normal(self.batch.n, purpose=6) > 0.5
        return self.labels.masked_fill(ignored, -100)

    @property
    def mask(self) -> Tensor:
        """Weights `(B, B)`, non-negative, some of them 0, not symmetric."""
        return self.batch.normal(self.batch.n, self.batch.n, purpose=7).clamp(min=0)

    @property
    def weight(self) -> Tensor:
        """Weights `(B,)`, positive."""
        return self.batch.normal(self.batch.n, purpose=8).exp()

    @property
    def key_features(self) -> Tensor:
        """Keys `(M, D)`, fp64."""
        return self.batch.normal(self.keys, self.batch.dim, purpose=9)

    @property
    def key_labels(self) -> Tensor:
        """Labels `(M,)` of the keys, int64."""
        g = self.batch.generator(10)
        return torch.randint(self.batch.classes, (self.keys,), generator=g)


@dataclass(frozen=True)
class NoisyLabels:
    """Samples of known class, predictions of a classifier, and labels that may be wrong.

    Attributes:
        n: number of samples.
        classes: K, the number of classes.
        rate: share of the labels that are wrong.
        confidence: mean difference between the logit of the true class and the other logits; 0: the
            predictions do not depend on the true class.
        seed: seed of all random numbers.

    Examples:
        >>> problem = NoisyLabels(n=1000, classes=4, rate=0.25)
        >>> round(float((problem.labels != problem.truth).double().mean()), 3)
        0.25
    """

    n: int
    classes: int
    rate: float = 0.2
    confidence: float = 3.0
    seed: int = 0

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + purpose)

    @property
    def truth(self) -> Tensor:
        """True classes `(n,)`, int64."""
        return torch.randint(self.classes, (self.n,), generator=self._generator(0))

    @property
    def labels(self) -> Tensor:
        """Labels `(n,)`, int64; a wrong label is drawn uniformly from the other classes."""
        g = self._generator(1)
        wrong = torch.randperm(self.n, generator=g)[: round(self.rate * self.n)]
        step = torch.randint(1, self.classes, (len(wrong),), generator=g)
        labels = self.truth
        labels[wrong] = (labels[wrong] + step) % self.classes
        return labels

    @property
    def probabilities(self) -> Tensor:
        """Predictions `(n, K)`, fp32, of a classifier that is right more often than not."""
        g = self._generator(2)
        noise = torch.randn(self.n, self.classes, generator=g)
        own = torch.nn.functional.one_hot(self.truth, self.classes)
        return (self.confidence * own + noise).softmax(1)
