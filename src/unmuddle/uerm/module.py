"""`UERM(nn.Module)`: watches predictions, proposes relabels once an epoch, records them."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from unmuddle.uerm.ledger import INTEGERS, Event, LabelLedger
from unmuddle.uerm.policy import Evidence, Proposals, ema_margin, scn
from unmuddle.uerm.uncertainty import AttentionHead, margin_uncertainty

Estimator = Literal["margin", "attention"]
Policy = Callable[[Evidence], Proposals]

# A policy by name, and the momentum of the predictions it is meant to see.
_POLICIES: dict[str, tuple[Policy, float]] = {"ema_margin": (ema_margin, 0.7), "scn": (scn, 0.0)}


class UERMOutput(NamedTuple):
    """What to train a batch of N samples on.

    Attributes:
        labels: `(N,)` labels as they stand.
        weight: `(N,)` in [0, 1], for a weighted mean of the samples' losses; 1 during warm-up.
        uncertainty: `(N,)` of the labels, in [0, 1]; carries no gradient.
        regularizer: scalar to add to the loss; trains the estimator only.
    """

    labels: Tensor
    weight: Tensor
    uncertainty: Tensor
    regularizer: Tensor


class UERM(nn.Module):
    """Uncertainty-estimation-based relabeling module: owns the labels of n training samples.

    Every training batch updates a running mean of its samples' predictions,
    `p <- momentum · p + (1 - momentum) · softmax(logits)`; views of one sample in a batch count
    once, by their mean, and a row that is not finite does not count. `end_epoch` lets the policy
    decide on that evidence, and records each change in `ledger`. In eval mode nothing is updated.

    Args:
        labels: `(n,)` integer labels as given; a sample's id is its index.
        num_classes: K.
        estimator: `"margin"`: from the running mean prediction; `"attention"`: a sigmoid head on
            the features, as in the Self-Cure Network.
        policy: `"ema_margin"`, `"scn"`, or any callable `Evidence -> Proposals`.
        warmup_epochs: W epochs train on the labels as given, with weights of 1; the first relabels
            come at the end of epoch W, or of the first where W = 0.
        momentum: of the running mean; `None`: 0.7, and 0 for `"scn"`, which looks at the last
            prediction alone.
        feature_dim: D of the features; needed by `"attention"`.

    Raises:
        ValueError: an option or shape does not fit. An id out of range is a RuntimeError, before
            anything is written.

    Examples:
        >>> uerm = UERM(torch.tensor([0, 1, 1, 0]), num_classes=2)
        >>> out = uerm(torch.randn(2, 8), torch.randn(2, 2), torch.tensor([3, 1]))
        >>> out.labels
        tensor([0, 1])
        >>> uerm.end_epoch()
        []

    References:
        Yang et al., Facial Expression Recognition with Contrastive Learning and
        Uncertainty-Guided Relabeling, 2023, doi 10.1142/S0129065723500326 (its text and code are
        not public); Wang et al. 2020, arXiv 2002.10392. `ema_margin` is our choice.
    """

    probabilities: Tensor
    uncertainty: Tensor
    seen: Tensor
    epoch: Tensor

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        *,
        estimator: Estimator = "margin",
        policy: Literal["ema_margin", "scn"] | Policy = "ema_margin",
        warmup_epochs: int = 5,
        momentum: float | None = None,
        feature_dim: int | None = None,
    ) -> None:
        super().__init__()
        labels = torch.as_tensor(labels)
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator: expected one of {get_args(Estimator)}, got {estimator!r}")
        if isinstance(policy, str):
            if policy not in _POLICIES:
                raise ValueError(
                    f"policy: expected one of {tuple(_POLICIES)} or a callable, got {policy!r}"
                )
            policy, default_momentum = _POLICIES[policy]
        else:
            default_momentum = 0.7
        if momentum is None:
            momentum = default_momentum
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected 0 <= momentum < 1, got {momentum}")
        if warmup_epochs < 0 or warmup_epochs != int(warmup_epochs):
            raise ValueError(
                f"warmup_epochs: expected a whole number of at least 0, got {warmup_epochs}"
            )
        if estimator == "attention" and not feature_dim:
            raise ValueError("feature_dim: needed by estimator='attention'")
        if not callable(policy):
            raise ValueError(f"policy: expected a name or a callable, got {policy!r}")

        self.ledger = LabelLedger(labels, num_classes)
        self.policy: Policy = policy
        self.num_classes = num_classes
        self.warmup_epochs = warmup_epochs
        self.momentum = momentum
        self.attention = (
            AttentionHead(feature_dim) if estimator == "attention" and feature_dim else None
        )
        n, device = len(labels), labels.device
        self.register_buffer("probabilities", torch.zeros(n, num_classes, device=device))
        self.register_buffer("uncertainty", torch.zeros(n, device=device))
        self.register_buffer("seen", torch.zeros(n, dtype=torch.int64, device=device))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, features: Tensor, logits: Tensor, ids: Tensor) -> UERMOutput:
        """Take in a batch and give what to train it on.

        Args:
            features: `(N, D)` embeddings of the samples; read by `"attention"` only.
            logits: `(N, K)` of the classifier.
            ids: `(N,)` integer sample ids; views of one sample repeat its id.
        """
        self._check_batch(features, logits, ids)
        ids = ids.long()
        labels = self.ledger.current_labels[ids]
        # Repeats of a sample in this batch share one update; a row that overflowed has no part.
        finite = logits.isfinite().all(1)
        share = finite / ((ids[:, None] == ids) & finite).sum(1).clamp(min=1)

        if self.training:
            with torch.no_grad():
                predicted = logits.nan_to_num().float().softmax(1)
                rate = torch.where(self.seen[ids] > 0, 1 - self.momentum, 1.0) * share
                step = rate[:, None] * (predicted - self.probabilities[ids])
                self.probabilities.index_add_(0, ids, step.to(self.probabilities.dtype))
                self.seen.index_add_(0, ids, finite.long())

        if self.attention is None:
            uncertainty = margin_uncertainty(self.probabilities[ids], labels)
            regularizer = uncertainty.new_zeros(())
        else:
            importance = self.attention(features)
            uncertainty = 1 - importance.detach()
            regularizer = self.attention.loss(importance, logits, labels)

        if self.training:
            step = share * (uncertainty - self.uncertainty[ids]).nan_to_num()
            self.uncertainty.index_add_(0, ids, step.to(self.uncertainty.dtype))
        weight = torch.where(self.epoch < self.warmup_epochs, 1.0, 1 - uncertainty)
        return UERMOutput(labels, weight, uncertainty, regularizer)

    @torch.no_grad()
    def end_epoch(self) -> list[Event]:
        """Count the epoch; once warm let the policy propose, apply it, and return the events.

        Samples never seen, and samples whose label somebody reverted, are left alone.
        """
        distributed = torch.distributed
        if (
            distributed.is_available()
            and distributed.is_initialized()
            and distributed.get_world_size() > 1
        ):
            raise RuntimeError("UERM: relabeling in several processes is not supported")
        ledger, epoch = self.ledger, int(self.epoch) + 1
        if epoch < self.warmup_epochs:
            self.epoch.fill_(epoch)
            return []
        labels, margin, threshold, rule = self.policy(
            Evidence(
                self.probabilities.clone(),
                self.uncertainty.clone(),
                ledger.original(),
                ledger.labels(),
            )
        )
        for name, value in (("labels", labels), ("margin", margin)):
            if value.shape != ledger.current_labels.shape:
                raise ValueError(
                    f"policy: expected {name} of shape (n,) = ({len(ledger)},), "
                    f"got {tuple(value.shape)}"
                )
        changed = (labels != ledger.current_labels) & (self.seen > 0) & ~ledger.reverted()
        ids = changed.nonzero()[:, 0]
        before = len(ledger.event_integers)
        ledger.record(
            ids,
            labels[ids],
            epoch=epoch,
            rule=rule,
            uncertainty=self.uncertainty[ids],
            margin=margin[ids],
            threshold=torch.as_tensor(threshold).expand(len(ledger))[ids],
        )
        self.epoch.fill_(epoch)
        return ledger.events(since=before)

    def _check_batch(self, features: Tensor, logits: Tensor, ids: Tensor) -> None:
        if ids.ndim != 1 or ids.dtype not in INTEGERS:
            raise ValueError(f"ids: expected (N,) integers, got {ids.dtype} {tuple(ids.shape)}")
        n = len(ids)
        if logits.shape != (n, self.num_classes):
            raise ValueError(
                f"logits: expected shape (N, K) = ({n}, {self.num_classes}), "
                f"got {tuple(logits.shape)}"
            )
        if features.ndim != 2 or len(features) != n:
            raise ValueError(
                f"features: expected shape (N, D) = ({n}, D), got {tuple(features.shape)}"
            )
        samples = len(self.ledger)
        # Checked on the device: the batch path never waits for the host.
        torch._assert_async(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
            ((ids >= 0) & (ids < samples)).all(), f"ids: expected 0 <= id < {samples}"
        )
