"""`UERM(nn.Module)`: collects predictions, relabels samples once per epoch, records changes."""

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
from unmuddle.uerm.noise import transition_matrix
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
    """Running means updated with the current epoch, but not yet stored."""

    predictions: Folded
    importance: Folded | None


class Decision(NamedTuple):
    """Changes at the end of an epoch.

    Attributes:
        ids: `(m,)` samples to relabel.
        labels: `(m,)` their new labels.
        margin: `(m,)` margin by which the policy prefers the new labels.
        threshold: `(m,)` bound that the margin passed.
        old_uncertainty: `(m,)` uncertainty of the old labels.
        uncertainty: `(n,)` uncertainty of all labels after the changes.
        transition: `(K, K)` estimate of P(label | class).
        rule: name of the policy.
    """

    ids: Tensor
    labels: Tensor
    margin: Tensor
    threshold: Tensor
    old_uncertainty: Tensor
    uncertainty: Tensor
    transition: Tensor
    rule: str


class UERM(nn.Module):
    """Uncertainty-estimation-based relabeling module, which owns the labels of n training samples.

    In training mode, `forward` adds the predictions of a batch to the mean of each sample in the
    current epoch. Views of a sample count equally, and rows with NaN or infinity are skipped.
    `end_epoch` updates a running mean over epochs,
    `p <- momentum · p + (1 - momentum) · epoch's mean`, applies the policy to the evidence, and
    records each change in `ledger`. In eval mode, `forward` updates nothing.

    `transition` is the estimate of `T[k, y] = P(label y | class k)`, `(K, K)`. It is the identity
    during the warm-up, and each later `end_epoch` or `relabel` estimates it anew.

    The state keeps its dtype under `.half()`, `.bfloat16()` and `.double()`.

    In a distributed run, all processes must call `end_epoch`, which combines their evidence. The
    resulting labels are the same as in a single process. Do not wrap the module in
    `DistributedDataParallel`, which would overwrite the sums of each process.

    Args:
        labels: `(n,)` original integer labels; the id of a sample is its index.
        num_classes: number of classes K.
        policy: `"bayes"`, `"ema_margin"`, `"scn"`, or any callable `Evidence -> Proposals`;
            `functools.partial` binds options, as in `partial(scn, group="all")`.
        estimator: estimator of uncertainty: `"mislabeled"`, `"attention"`, or any callable
            `Evidence -> (n,)` in [0, 1].
        feature_dim: feature dimension D; required for `"attention"`.
        quarantine: if `True`, relabeled samples get a weight of 0, so their predictions remain
            evidence. If `False`, they are trained on with their new label. If `None`, use the
            default of the policy, which is `False` for `"scn"` and `True` otherwise.
        warmup_epochs: number of epochs W that train on the original labels with weights of 1. The
            first relabels are made at the end of epoch W, or of the first epoch if W = 0.
        momentum: momentum of the running mean. If `None`, use the default of the policy, which is 0
            for `"scn"`, since it uses only the last epoch.
        max_fraction: maximum share of samples whose label differs from the original label.
        class_floor: minimum share of the samples of each original class that keep their label.
        top_k: number of largest entries to keep of each running mean; `None` keeps all K.
        dtype: dtype of the running mean, float32 or float16.

    Raises:
        ValueError: an option or a shape is invalid.
        RuntimeError: an id is out of range. Nothing is written.

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
    transition: Tensor
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
        self.register_buffer("transition", torch.eye(num_classes, device=device))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("one_hot", torch.eye(num_classes, device=device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UERM":
        """Apply `fn` as `nn.Module` does, but keep the dtype of each tensor."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(moved, recurse)

    def forward(
        self, features: Tensor, logits: Tensor, ids: Tensor, *, observe: bool = True
    ) -> UERMOutput:
        """Return training targets and weights of a batch, and collect its predictions as evidence.

        Args:
            features: `(N, D)` embeddings of the samples; used only by the estimator `"attention"`.
            logits: `(N, K)` logits of the classifier.
            ids: `(N,)` integer sample ids; views of one sample repeat its id.
            observe: whether to collect the predictions. Use `False` if better predictions are
                passed to the method `observe`.
        """
        self._check_batch(features, logits, ids)
        ids = ids.long()
        ledger = self.ledger
        labels, given, uncertainty, weight = (
            values.index_select(0, ids)
            for values in (
                ledger.current_labels, ledger.original_labels, self.uncertainty, self.weight
            )
        )  # fmt: skip
        targets = self.one_hot[labels]
        regularizer = uncertainty.new_zeros(())
        if self.attention is not None:
            regularizer = self.attention.loss(self.attention(features), logits, labels)
        if observe and self.training:
            self._take_in(features, logits, ids)
        return UERMOutput(labels, targets, weight, uncertainty, regularizer, given, self.transition)

    def observe(self, features: Tensor, logits: Tensor, ids: Tensor) -> None:
        """Collect predictions as evidence, also in eval mode; see `forward` for the arguments.

        The best evidence comes from a better model than the one being trained, such as an average
        of its weights over the last steps. Predict images without augmentation once per epoch.
        """
        self._check_batch(features, logits, ids)
        self._take_in(features, logits, ids.long())

    @torch.no_grad()
    def _take_in(self, features: Tensor, logits: Tensor, ids: Tensor) -> None:
        # A row that overflowed is all NaN, and the history skips it.
        self.predictions.add(ids, logits.float().softmax(1))
        if self.importance is not None and self.attention is not None:
            importance = self.attention(features)
            self.importance.add(ids, torch.stack([importance, 1 - importance], 1))

    @torch.no_grad()
    def end_epoch(self) -> list[Event]:
        """End the epoch; after the warm-up, apply the policy. Return the new events.

        Samples never seen, and samples whose label was set by hand, are not relabeled.
        """
        means = self._epoch_means()
        events = self._relabel(means, int(self.epoch) + 1)
        for history, folded in zip(self._histories(), means, strict=True):
            if history is not None and folded is not None:
                history.put(folded)
        self.epoch.add_(1)
        return events

    @torch.no_grad()
    def relabel(self) -> list[Event]:
        """Apply the policy between two epochs. Return the new events.

        Call this method after `ledger.decide`, so that the next epoch already uses what the
        decisions teach about the other labels. During the warm-up, it does nothing. In a
        distributed run, all processes must call this method.
        """
        return self._relabel(self._epoch_means(), int(self.epoch))

    def _relabel(self, means: EpochMeans, epoch: int) -> list[Event]:
        before = len(self.ledger.event_integers)
        if epoch >= max(1, self.warmup_epochs):
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
            with torch.inference_mode(False):  # not in place: an earlier output keeps its own
                self.transition = decided.transition.clone()
        return self.ledger.events(since=before)

    @torch.no_grad()
    def evidence(self) -> Evidence:
        """Return the evidence about every sample, including the current epoch so far.

        In a distributed run, all processes must call this method.
        """
        return self._evidence(self._epoch_means()).copy()

    @torch.no_grad()
    def suggest(self, limit: int | None = None, *, to_verify: bool = False) -> list[Suggestion]:
        """List the relabels that the policy would make now, most confident first; apply none.

        Samples never seen, and samples whose label was set by hand, are left out. In a distributed
        run, all processes must call this method.

        Args:
            limit: maximum number of suggestions.
            to_verify: suggest labels to verify with `ledger.decide` instead. They are drawn at
                random from the quarter of the labels that is most likely wrong. `margin` is then
                the probability that the label is wrong. The draw changes with each decision.
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
        """Return a mask `(n,)` of the samples whose label a policy may change."""
        return (means.predictions.seen > 0) & ~self.ledger.fixed()

    def _evidence(self, means: EpochMeans) -> Evidence:
        """Fit the noise model, calibrate on verified labels, and estimate the uncertainty."""
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
        # 0 is for samples never seen and labels set by hand, also where P(label) rounds to 1.
        found = found.detach().float().clamp(min=torch.finfo(torch.float32).tiny)
        return found.masked_fill(means.predictions.seen == 0, 0)

    def _proposals(self, evidence: Evidence, free: Tensor) -> Proposals:
        """Return the proposals of the policy, restricted to changes that are allowed."""
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
            transition=transition_matrix(
                evidence.posterior,
                evidence.original,
                self.num_classes,
                verified=self.ledger.human_verified(),
                truth=evidence.current,
            ),
            rule=rule,
        )

    def _weights(self) -> Tensor:
        """Return the weight of each target, which is 1 if its label is fixed."""
        ledger = self.ledger
        weight = 1 - self.uncertainty
        if self.quarantine:
            weight = torch.where(ledger.current_labels == ledger.original_labels, weight, 0)
        return torch.where(ledger.fixed(), 1, weight)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Check everything first: a state is loaded completely or not at all.
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
            return  # index_select asserts the range on the device, without synchronisation
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
