"""`UERM(nn.Module)`: watches predictions, proposes relabels once an epoch, records them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmuddle.uerm.evidence import Evidence, gather_evidence
from unmuddle.uerm.history import DenseHistory, Folded, TopKHistory
from unmuddle.uerm.importance import AttentionHead
from unmuddle.uerm.inputs import INTEGERS, whole
from unmuddle.uerm.ledger import LabelLedger
from unmuddle.uerm.output import UERMOutput
from unmuddle.uerm.policy import (
    Policy,
    PolicyName,
    Proposals,
    choose_policy,
    draw_to_verify,
    guarded,
    suggestions,
)
from unmuddle.uerm.processes import from_first_process
from unmuddle.uerm.records import Event, Suggestion
from unmuddle.uerm.uncertainty import Estimator, EstimatorName, choose_estimator


class EpochMeans(NamedTuple):
    """Running means with this epoch in them, not yet in place."""

    predictions: Folded
    importance: Folded | None


class Decision(NamedTuple):
    """Changes at the end of an epoch.

    Attributes:
        ids: `(m,)` samples to relabel.
        labels: `(m,)` their new labels.
        margin: `(m,)` by which the policy prefers them.
        threshold: `(m,)` bound that the margin passed.
        old_uncertainty: `(m,)` of the labels before.
        uncertainty: `(n,)` of all labels after.
        rule: name of the policy.
    """

    ids: Tensor
    labels: Tensor
    margin: Tensor
    threshold: Tensor
    old_uncertainty: Tensor
    uncertainty: Tensor
    rule: str


class UERM(nn.Module):
    """Uncertainty-estimation-based relabeling module: owns the labels of n training samples.

    Every training batch adds its predictions to this epoch's mean of each sample; views of a sample
    count alike, and a row with NaN or infinity does not count. `end_epoch` folds that into a
    running mean over epochs, `p <- momentum · p + (1 - momentum) · epoch's mean`, lets the policy
    decide on the evidence, and records each change in `ledger`. In eval mode `forward` updates
    nothing.

    Its state keeps its precision: `.half()`, `.bfloat16()` and `.double()` leave it as it is.

    In a distributed run the processes share their evidence in `end_epoch`, which all of them call,
    and have the same labels after it as one process would. Leave the module out of
    `DistributedDataParallel`, which would overwrite each process's sums.

    Args:
        labels: `(n,)` integer labels as given; a sample's id is its index.
        num_classes: K.
        policy: `"bayes"`, `"ema_margin"`, `"scn"`, or any callable `Evidence -> Proposals`;
            `functools.partial` binds options, as in `partial(scn, group="all")`.
        estimator: of uncertainty: `"mislabeled"`, `"attention"`, or any callable
            `Evidence -> (n,)` in [0, 1].
        feature_dim: D of the features; needed for `"attention"`.
        quarantine: relabeled samples get a weight of 0, so that what is predicted of them stays
            evidence; `False`: they are trained on by their new label. `None`: what suits the
            policy; the Self-Cure Network trains on them.
        warmup_epochs: W epochs train on the labels as given, with weights of 1; the first relabels
            come at the end of epoch W, or of the first where W = 0.
        momentum: of the running mean; `None`: what suits the policy, and 0 for `"scn"`, which
            looks at the last epoch alone.
        max_fraction: at most this share of the samples has another label than its original one.
        class_floor: of the samples given as one class, at least this share keeps that label.
        top_k: keep this many classes of each running mean, the largest; `None`: all K.
        dtype: of the running mean, float32 or float16.

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
        not public); Wang et al. 2020, arXiv 2002.10392. `bayes` and `ema_margin` are ours.
    """

    uncertainty: Tensor
    weight: Tensor
    epoch: Tensor
    one_hot: Tensor

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        *,
        policy: PolicyName | Policy = "bayes",
        estimator: EstimatorName | Estimator = "mislabeled",
        feature_dim: int | None = None,
        quarantine: bool | None = None,
        warmup_epochs: int = 5,
        momentum: float | None = None,
        max_fraction: float = 0.5,
        class_floor: float = 0.1,
        top_k: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
        self.policy, defaults = choose_policy(policy)
        self.estimator = choose_estimator(estimator)
        self.momentum = defaults.momentum if momentum is None else momentum
        self.quarantine = defaults.quarantine if quarantine is None else quarantine
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"dtype: expected float32 or float16, got {dtype!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected 0 <= momentum < 1, got {momentum}")
        if warmup_epochs < 0 or warmup_epochs != int(warmup_epochs):
            raise ValueError(
                f"warmup_epochs: expected a whole number of at least 0, got {warmup_epochs}"
            )
        for name, share in (("max_fraction", max_fraction), ("class_floor", class_floor)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {share}")
        if top_k is not None and top_k < 2:
            raise ValueError(f"top_k: expected at least 2, got {top_k}")
        is_attention = estimator == "attention"
        if is_attention and not feature_dim:
            raise ValueError(
                f"feature_dim: expected D of the features, which estimator 'attention' reads, "
                f"got {feature_dim}"
            )

        self.ledger = LabelLedger(labels, num_classes)
        self.num_classes = num_classes
        self.warmup_epochs = warmup_epochs
        self.max_fraction = max_fraction
        self.class_floor = class_floor
        n, device = len(self.ledger), self.ledger.current_labels.device
        self.predictions = (
            DenseHistory(n, num_classes, dtype, device)
            if top_k is None
            else TopKHistory(n, num_classes, min(top_k, num_classes), dtype, device)
        )
        self.attention = AttentionHead(feature_dim) if is_attention and feature_dim else None
        self.importance = DenseHistory(n, 2, torch.float32, device) if is_attention else None
        self.register_buffer("uncertainty", torch.zeros(n, device=device))
        self.register_buffer("weight", torch.ones(n, device=device))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("one_hot", torch.eye(num_classes, device=device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UERM":
        """Move to a device, as `nn.Module` does, but never to another dtype."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(moved, recurse)

    def forward(
        self, features: Tensor, logits: Tensor, ids: Tensor, *, observe: bool = True
    ) -> UERMOutput:
        """Return what to train a batch on, and take its predictions in as evidence.

        Args:
            features: `(N, D)` embeddings of the samples; only estimator `"attention"` reads them.
            logits: `(N, K)` of the classifier.
            ids: `(N,)` integer sample ids; views of one sample repeat its id.
            observe: `False` where better predictions are given to `observe`.
        """
        self._check_batch(features, logits, ids)
        ids = ids.long()
        labels, uncertainty, weight = (
            values.index_select(0, ids)
            for values in (self.ledger.current_labels, self.uncertainty, self.weight)
        )
        targets = self.one_hot[labels]
        regularizer = uncertainty.new_zeros(())
        if self.attention is not None:
            regularizer = self.attention.loss(self.attention(features), logits, labels)
        if observe and self.training:
            self._take_in(features, logits, ids)
        return UERMOutput(labels, targets, weight, uncertainty, regularizer)

    def observe(self, features: Tensor, logits: Tensor, ids: Tensor) -> None:
        """Take in predictions as evidence, in eval mode too; arguments as in `forward`.

        Evidence is best from a better model than the one in training: an average of its weights
        over the last steps, on images without augmentation, once an epoch.
        """
        self._check_batch(features, logits, ids)
        self._take_in(features, logits, ids.long())

    @torch.no_grad()
    def _take_in(self, features: Tensor, logits: Tensor, ids: Tensor) -> None:
        # A row that overflowed is NaN throughout, and does not count.
        self.predictions.add(ids, logits.float().softmax(1))
        if self.importance is not None and self.attention is not None:
            importance = self.attention(features)
            self.importance.add(ids, torch.stack([importance, 1 - importance], 1))

    @torch.no_grad()
    def end_epoch(self) -> list[Event]:
        """Count the epoch; once warm let the policy propose, apply it, and return the events.

        Samples never seen, and samples whose label somebody chose, are left alone.
        """
        epoch = int(self.epoch) + 1
        means = self._epoch_means()
        before = len(self.ledger.event_integers)
        if epoch >= self.warmup_epochs:
            decided = Decision(*from_first_process(partial(self._decide, means), self.epoch.device))
            self.ledger.record(
                decided.ids,
                decided.labels,
                epoch=epoch,
                rule=decided.rule,
                uncertainty=decided.old_uncertainty,
                margin=decided.margin,
                threshold=decided.threshold,
            )
            self.uncertainty.copy_(decided.uncertainty.masked_fill(self.ledger.fixed(), 0))
            self.weight.copy_(self._weights())
        for history, folded in zip(self._histories(), means, strict=True):
            if history is not None and folded is not None:
                history.put(folded)
        self.epoch.fill_(epoch)
        return self.ledger.events(since=before)

    @torch.no_grad()
    def evidence(self) -> Evidence:
        """Return what is known of every sample, this epoch so far included.

        In a distributed run all processes call it.
        """
        return self._evidence(self._epoch_means()).copy()

    @torch.no_grad()
    def suggest(self, limit: int | None = None, *, to_verify: bool = False) -> list[Suggestion]:
        """List what the policy would relabel now, most confident first; nothing is applied.

        Samples never seen, and samples whose label somebody chose, are left out. In a distributed
        run all processes call it.

        Args:
            limit: maximum number of suggestions.
            to_verify: suggest labels to verify with `ledger.decide` instead, drawn at random from
                the half that is most likely wrong. `margin` is then the probability that the label
                is wrong. Each decision leads to another draw.
        """
        if limit is not None:
            limit = whole("limit", limit)
        means = self._epoch_means()
        evidence = self._evidence(means)
        free = self._free(means)
        proposals = (
            draw_to_verify(evidence, free, limit, seed=int(self.ledger.fixed().sum()))
            if to_verify
            else self._proposals(evidence, free)
        )
        return suggestions(proposals, evidence.current, evidence.uncertainty, limit)

    def _histories(self) -> tuple[DenseHistory | TopKHistory | None, ...]:
        return self.predictions, self.importance

    def _epoch_means(self) -> EpochMeans:
        importance = self.importance
        return EpochMeans(
            self.predictions.fold(self.momentum),
            None if importance is None else importance.fold(self.momentum),
        )

    def _free(self, means: EpochMeans) -> Tensor:
        """Return `(n,)` True where a policy may change the label."""
        return (means.predictions.seen > 0) & ~self.ledger.fixed()

    def _evidence(self, means: EpochMeans) -> Evidence:
        """Fit the noise model and the verified labels; estimate the current labels' uncertainty."""
        predictions, importance = means
        evidence = gather_evidence(
            predictions.mean,
            self.ledger.original_labels,
            self.num_classes,
            current=self.ledger.current_labels,
            verified=self.ledger.human_verified() & (predictions.seen > 0),
            importance=None if importance is None else importance.mean.probabilities[:, 0],
        )
        return evidence._replace(uncertainty=self._estimate(evidence, means))

    def _estimate(self, evidence: Evidence, means: EpochMeans) -> Tensor:
        found = _checked("estimator", "(n,)", self.estimator(evidence.copy()), evidence.current)
        if not bool(((found >= 0) & (found <= 1)).all()):
            raise ValueError("estimator: expected numbers from 0 to 1, got others or NaN")
        return found.detach().float().masked_fill(means.predictions.seen == 0, 0)

    def _proposals(self, evidence: Evidence, free: Tensor) -> Proposals:
        """The policy's proposals within what may change."""
        proposals = self.policy(evidence.copy())
        if not isinstance(proposals, Proposals):
            raise ValueError(f"policy: expected Proposals, got {type(proposals).__name__}")
        labels = _checked("policy", "labels of shape (n,)", proposals.labels, evidence.current)
        margin = _checked("policy", "margin of shape (n,)", proposals.margin, evidence.current)
        if labels.dtype not in INTEGERS or bool(
            ((labels < 0) | (labels >= self.num_classes)).any()
        ):
            raise ValueError(f"policy: expected integer labels from 0 to {self.num_classes - 1}")
        if bool(margin.isnan().any()):
            raise ValueError("policy: expected numbers as margin, got NaN")
        threshold = torch.as_tensor(proposals.threshold, device=labels.device)
        if threshold.ndim:
            _checked("policy", "one threshold, or thresholds of shape (n,)", threshold, labels)
        labels = torch.where(free, labels, evidence.current)
        return guarded(
            proposals._replace(labels=labels, margin=margin.float()),
            evidence,
            max_fraction=self.max_fraction,
            class_floor=self.class_floor,
        )

    def _decide(self, means: EpochMeans) -> Decision:
        evidence = self._evidence(means)
        labels, margin, threshold, rule = self._proposals(evidence, self._free(means))
        ids = (labels != evidence.current).nonzero()[:, 0]
        return Decision(
            ids=ids,
            labels=labels[ids],
            margin=margin[ids],
            threshold=torch.as_tensor(threshold, device=ids.device).expand(len(labels))[ids],
            old_uncertainty=evidence.uncertainty[ids],
            uncertainty=self._estimate(evidence.about(labels), means),
            rule=rule,
        )

    def _weights(self) -> Tensor:
        """Return how far each target is trusted: fully where its label is fixed."""
        ledger = self.ledger
        weight = 1 - self.uncertainty
        if self.quarantine:
            weight = torch.where(ledger.current_labels == ledger.original_labels, weight, 0)
        return torch.where(ledger.fixed(), 1, weight)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A state is loaded whole or not at all.
        other_options = "was it saved by a UERM of other options?"
        self.ledger.check_state(state_dict, f"{prefix}ledger.")
        own = self.state_dict()
        for name in state_dict:
            if name.startswith(prefix) and name.removeprefix(prefix) not in own:
                raise RuntimeError(f"{name}: expected no such tensor; {other_options}")
        for name, value in own.items():
            saved = state_dict.get(prefix + name)
            grows = name.startswith("ledger.")
            if not isinstance(saved, Tensor) or (saved.shape != value.shape and not grows):
                found = None if saved is None else tuple(saved.shape)
                raise RuntimeError(
                    f"{prefix}{name}: expected {tuple(value.shape)}, got {found}; {other_options}"
                )
            if name.endswith("classes") and bool((saved >= self.num_classes).any()):
                raise RuntimeError(
                    f"{prefix}{name}: of more than {self.num_classes} classes; {other_options}"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_batch(self, features: Tensor, logits: Tensor, ids: Tensor) -> None:
        for name, given in (("features", features), ("logits", logits), ("ids", ids)):
            if not isinstance(given, Tensor):
                raise ValueError(f"{name}: expected a tensor, got {type(given).__name__}")
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
        dim = None if self.attention is None else self.attention.linear.in_features
        if dim is not None and features.shape[1] != dim:
            raise ValueError(
                f"features: expected shape (N, D) = ({n}, {dim}), got {tuple(features.shape)}"
            )
        if ids.is_cuda and not torch.compiler.is_compiling():
            return  # index_select asserts the range on the device: nothing waits for the host
        samples = len(self.ledger)
        torch._assert_async(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
            ((ids >= 0) & (ids.long() < samples)).all(), f"ids: expected 0 <= id < {samples}"
        )


def _checked(name: str, expected: str, values: Tensor, like: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: expected {expected}, got {type(values).__name__}")
    if values.shape != like.shape:
        raise ValueError(f"{name}: expected {expected} = ({len(like)},), got {tuple(values.shape)}")
    return values
