"""Policies, which map evidence about all samples to proposals and have no side effects.

A policy is any callable `Evidence -> Proposals`; bind options with `functools.partial`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unmuddle.uerm.evidence import Evidence
from unmuddle.uerm.records import Suggestion


class Proposals(NamedTuple):
    """A proposed label for every sample, with the evidence for it.

    Attributes:
        labels: `(n,)` labels, equal to the current label if no change is proposed.
        margin: `(n,)` margin by which the evidence prefers another class to the compared label.
        threshold: `(n,)` or one number; the bound that the margin is compared with.
        rule: name of the policy.
    """

    labels: Tensor
    margin: Tensor
    threshold: Tensor | float
    rule: str


def bayes(evidence: Evidence, *, precision: float = 0.9, hysteresis: float = 0.1) -> Proposals:
    """Relabel samples whose posterior favours another class.

    Let y be the ORIGINAL label and `m = max_{k != y} P(k | y)`. A sample is relabeled to that class
    if `m >= t`, where t >= 1/2 is the smallest threshold at which the mean of all `m >= t`, the
    expected precision of the new labels, reaches `precision`. A relabeled sample keeps its label
    while the posterior of that label exceeds t - hysteresis, then returns to y (our choice).

    The expected precision is only as good as the posterior. Verified labels (`LabelLedger.decide`)
    make it better calibrated; without them a larger `precision` is merely a stricter rule.

    Raises:
        ValueError: an option is not between 0 and 1.

    Examples:
        >>> from unmuddle.uerm import Distribution, gather_evidence
        >>> p = torch.tensor([[0.99, 0.01]]).repeat(100, 1)
        >>> given = (torch.arange(100) < 5).long()  # five are contradicted
        >>> bayes(gather_evidence(Distribution(p), given, 2)).labels[:7]
        tensor([0, 0, 0, 0, 0, 0, 0])
    """
    for name, share in (("precision", precision), ("hysteresis", hysteresis)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {share}")
    original, current = evidence.original, evidence.current
    likely = evidence.posterior
    margin, rival = likely.rival(original)
    threshold = _threshold(margin[margin > 0.5], precision)
    stays = (current != original) & (likely.prob_of(current) > threshold - hysteresis)
    labels = torch.where(stays, current, original)
    labels = torch.where((margin >= threshold) & (margin > 0.5), rival, labels)
    return Proposals(labels, margin, threshold, "bayes")


def _threshold(candidates: Tensor, precision: float) -> float:
    """Return the smallest threshold >= 1/2 at which the candidates' mean reaches `precision`."""
    ordered = candidates.sort(descending=True).values
    expected = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1, device=ordered.device)
    last_of_ties = torch.ones_like(ordered, dtype=torch.bool)
    last_of_ties[:-1] = ordered[1:] < ordered[:-1]
    sure = (expected >= precision) & last_of_ties
    if sure[-1:].all():  # all candidates qualify, or there are none
        return 0.5
    return float(ordered[sure][-1]) if sure.any() else 1.0


def ema_margin(evidence: Evidence, *, threshold: float = 0.4, hysteresis: float = 0.2) -> Proposals:
    """Relabel samples whose mean prediction contradicts the ORIGINAL label; undo it if it recovers.

    Let y be the original label and `m = max_{k != y} p[k] - p[y]`. If `m > threshold`, `argmax p`
    is proposed. If `m < threshold - hysteresis`, a relabeled sample returns to y. In between, a
    sample keeps its label. Averaging over epochs, and never comparing with an already changed
    label, prevents errors from reinforcing themselves (our choice).

    Examples:
        >>> from unmuddle.uerm import Distribution, gather_evidence
        >>> p, given = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([1, 0])
        >>> ema_margin(gather_evidence(Distribution(p), given, 2)).labels
        tensor([0, 0])
    """
    original, current = evidence.original, evidence.current
    margin = -evidence.predictions.margin(original)
    take_back = (current != original) & (margin < threshold - hysteresis)
    labels = torch.where(take_back, original, current)
    labels = torch.where(margin > threshold, evidence.predictions.rival(original)[1], labels)
    return Proposals(labels, margin, threshold - hysteresis * take_back.double(), "ema_margin")


def scn(
    evidence: Evidence,
    *,
    threshold: float = 0.2,
    group: Literal["low", "all"] = "low",
    low_fraction: float = 0.3,
) -> Proposals:
    """Self-Cure Network: relabel where `max_k p[k] - p[current] > threshold`.

    The paper considers only the group of low importance (`group="low"`), which is the most
    uncertain `low_fraction` of the samples. Its released code considers every sample
    (`group="all"`). The network decides on single predictions of augmented training batches, so use
    this policy with `momentum=0`. After a change, predictions are compared with the new label, and
    the original label is no longer used.

    References:
        Wang et al., Suppressing Uncertainties for Large-Scale Facial Expression Recognition, 2020,
        arXiv 2002.10392.
    """
    if group not in ("low", "all"):
        raise ValueError(f"group: expected 'low' or 'all', got {group!r}")
    probability, rival = evidence.predictions.rival(evidence.current)
    margin = probability - evidence.predictions.prob_of(evidence.current)
    relabel = margin > threshold
    if group == "low":
        rank = evidence.uncertainty.argsort(descending=True).argsort()
        relabel = relabel & (rank < round(low_fraction * len(rank)))
    rule = "scn" if group == "low" else "scn_all"
    return Proposals(torch.where(relabel, rival, evidence.current), margin, threshold, rule)


def guarded(
    proposals: Proposals, evidence: Evidence, *, max_fraction: float = 1.0, class_floor: float = 0.0
) -> Proposals:
    """Keep the most confident proposals within the limits `max_fraction` and `class_floor`.

    Args:
        proposals: proposals of a policy.
        evidence: evidence that the policy used.
        max_fraction: maximum share of samples whose label differs from the original label.
        class_floor: minimum share of the samples of each original class that keep their label.

    Returns:
        The proposals, in which those beyond the limits are replaced by the current label. Samples
        that are already relabeled have priority. A return to the original label is always allowed.
    """
    original, current = evidence.original, evidence.current
    changes = proposals.labels != original
    staying = changes & (current != original)
    wanted = changes & ~staying

    members = torch.bincount(original, minlength=evidence.num_classes)
    leaving = torch.bincount(original[staying], minlength=evidence.num_classes)
    room = members - (class_floor * members).ceil().long() - leaving
    allowed = wanted & (_rank(proposals.margin, wanted, original) < room[original])
    budget = int(max_fraction * len(original)) - int(staying.sum())
    allowed &= _rank(proposals.margin, allowed, torch.zeros_like(original)) < budget
    return proposals._replace(labels=torch.where(wanted & ~allowed, current, proposals.labels))


def suggestions(
    proposals: Proposals, current: Tensor, uncertainty: Tensor, limit: int | None = None
) -> list[Suggestion]:
    """List the changes that `proposals` would make, most confident first.

    Args:
        proposals: proposals of a policy.
        current: `(n,)` current labels.
        uncertainty: `(n,)` uncertainty of the current labels.
        limit: maximum number of suggestions; `None`: all.
    """
    ids = (proposals.labels != current).nonzero()[:, 0]
    best = proposals.margin[ids].argsort(descending=True, stable=True)
    ids = ids[best[:limit]]
    threshold = torch.as_tensor(proposals.threshold, device=ids.device).expand(len(current))
    columns = (
        ids,
        current[ids],
        proposals.labels[ids],
        proposals.margin[ids],
        threshold[ids],
        uncertainty[ids],
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Suggestion(*row, rule=proposals.rule) for row in rows]


def draw_to_verify(
    evidence: Evidence, free: Tensor, limit: int | None = None, *, seed: int = 0
) -> Proposals:
    """Draw labels to verify at random from the quarter that is most likely wrong.

    Verifying only the most suspicious labels would say little about the rest, and most other labels
    are right.

    Args:
        evidence: evidence about all samples.
        free: `(n,)` True for samples that may be drawn.
        limit: maximum number of samples; `None`: the whole quarter.
        seed: seed of the random draw.
    """
    doubt = 1 - evidence.posterior.prob_of(evidence.current)
    number = -(-int(free.sum()) // 4)
    quarter = torch.where(free, doubt, -1).argsort(descending=True, stable=True)[:number]
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed), device="cpu")
    drawn = quarter[order.to(quarter.device)[:limit]]
    labels = evidence.current.clone()
    labels[drawn] = evidence.posterior.rival(evidence.current)[1][drawn]
    return Proposals(labels, doubt, 0.0, "verify")


class PolicyDefaults(NamedTuple):
    """Default options of `UERM` for a policy."""

    momentum: float
    quarantine: bool


PolicyName = Literal["bayes", "ema_margin", "scn"]
Policy = Callable[[Evidence], Proposals]
_POLICIES: dict[str, tuple[Policy, PolicyDefaults]] = {
    "bayes": (bayes, PolicyDefaults(0.5, quarantine=True)),
    "ema_margin": (ema_margin, PolicyDefaults(0.7, quarantine=True)),
    # It uses only the last predictions, and trains on relabeled samples.
    "scn": (scn, PolicyDefaults(0.0, quarantine=False)),
}
_OWN = PolicyDefaults(0.8, quarantine=True)


def choose_policy(policy: PolicyName | Policy) -> tuple[Policy, PolicyDefaults]:
    """Return a policy, given as a callable or by name, and its default options."""
    if isinstance(policy, str):
        if policy not in _POLICIES:
            raise ValueError(
                f"policy: expected one of {tuple(_POLICIES)} or a callable, got {policy!r}"
            )
        return _POLICIES[policy]
    if not callable(policy):
        raise ValueError(f"policy: expected a name or a callable, got {policy!r}")
    function: Any = policy.func if isinstance(policy, partial) else policy
    return policy, next((d for known, d in _POLICIES.values() if known is function), _OWN)


def _rank(scores: Tensor, among: Tensor, group: Tensor) -> Tensor:
    """Return the rank `(n,)` of each sample in its group by score, largest first.

    Samples that are not `among` come last.
    """
    by_score = torch.where(among, scores, -torch.inf).argsort(descending=True, stable=True)
    order = by_score[group[by_score].argsort(stable=True)]
    sizes = torch.bincount(group)
    start = sizes.cumsum(0) - sizes
    places = torch.arange(len(scores), device=scores.device) - start[group[order]]
    return torch.empty_like(places).scatter_(0, order, places)
