"""Losses broken on purpose, one for each law: a law that lets its mutant live is dead."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tests.helpers import gathers, zoo
from unmuddle import supcon_loss
from unmuddle.testing.loss import Kind

SUPCON: tuple[Kind, ...] = ("pairwise", "normalised", "supervised", "contrastive")
SOFT, VIEWS = (*SUPCON, "soft"), (*SUPCON, "views")


class Mutant(NamedTuple):
    """A broken loss, the kinds it pretends to be of, and what is wrong with it."""

    fn: Callable[..., Tensor]
    kinds: tuple[Kind, ...]
    fault: str
    processes: int | None = None


MUTANTS: dict[str, Mutant] = {}


def supcon(
    features, labels, *, mask=None, keys=None, key_labels=None, weight=None, temperature=0.1,
    normalize=True, positives="out", contrast_mode="all", ignore_index=-100, reduction="mean",
    no_positive="skip",
):  # fmt: skip
    """The honest loss that most mutants are made of."""
    return supcon_loss(
        features, labels, mask=mask, keys=keys, key_labels=key_labels, weight=weight,
        temperature=temperature, normalize=normalize, positives=positives, no_positive=no_positive,
        contrast_mode=contrast_mode, ignore_index=ignore_index, reduction=reduction,
        impl="reference",
    )  # fmt: skip


def scores(features, labels):
    """The honest loss of scores."""
    return cross_entropy(features, labels)


class Honest(nn.Module):
    """The honest loss as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(0.1))

    def forward(self, features, labels):
        return supcon_loss(features, labels, temperature=float(self.temperature))


def mutant(fault: str, kinds: tuple[Kind, ...] = SUPCON):
    """Register a function as the mutant of the law of its name."""

    def register(fn):
        MUTANTS[fn.__name__] = Mutant(fn, kinds, fault)
        return fn

    return register


def gradient_of(fn, features, labels):
    leaf = features.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(fn(leaf, labels), leaf)[0]


def with_gradient(value, features, gradient):
    """`value`, with another gradient than its own."""
    return value.detach() + ((features - features.detach()) * gradient).sum()


# --- any loss


def distances(features):
    first, second = torch.triu_indices(len(features), len(features), 1)
    return (features[first] - features[second]).square().sum(1).sqrt()


@mutant("divides by the distance of two rows")
def finite_value(features, labels):
    return supcon(features, labels) + 1e-3 * (1 / distances(features)).sum()


@mutant("the gradient of a distance of equal rows")
def finite_gradient(features, labels):
    return supcon(features, labels) + 1e-3 * distances(features).sum()


@mutant("the mean over an empty set")
def one_sample(features, labels):
    return supcon(features, labels) if len(features) > 1 else features.sum() * math.nan


NOISE = torch.Generator().manual_seed(0)


@mutant("random numbers of its own in the result")
def deterministic(features, labels):
    return supcon(features, labels) + 1e-6 * torch.rand((), generator=NOISE)


STATE = {"mean": 0.0}


@mutant("a running mean over batches")
def stateless(features, labels):
    value = supcon(features, labels) + 1e-3 * STATE["mean"]
    STATE["mean"] = float(features.detach().double().nan_to_num().mean())
    return value


@mutant("normalises in place")
def inputs_untouched(features, labels):
    value = supcon(features, labels)
    features.data.copy_(normalize(features.data))
    return value


@mutant("draws from the global generator")
def random_state_untouched(features, labels):
    torch.rand(1)
    return supcon(features, labels)


@mutant("the first row counts more")
def permutation(features, labels):
    return supcon(features, labels) + 0.01 * features[0].norm()


@mutant("the gradient of the first row goes to the last")
def permuted_gradient(features, labels):
    gradient = gradient_of(supcon, features, labels)
    return with_gradient(supcon(features, labels), features, gradient.roll(1, 0))


@mutant("reads memory as if rows lay one after the other")
def strides(features, labels):
    n, dim = features.shape
    return supcon(features.as_strided((n, dim), (dim, 1)), labels)


@mutant("always fp64")
def result_dtype(features, labels):
    return supcon(features, labels).double()


@mutant("works in fp32 whatever it is given")
def double_precision(features, labels):
    return supcon(features.float(), labels).to(features.dtype)


@mutant("exponentials without taking out the largest")
def large_features(features, labels):
    return supcon(features, labels) + 1e-3 * features.exp().sum(1).log().mean()


@mutant("the gradient is one percent too large")
def directional_derivative(features, labels):
    value = supcon(features, labels)
    return value.detach() + 1.01 * (value - value.detach())


class DeafBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return torch.ones_like(upstream)


@mutant("the backward pass ignores what comes from above")
def upstream_gradient(features, labels):
    return DeafBackward.apply(supcon(features, labels))


@mutant("another formula where no gradient is asked for")
def without_gradient(features, labels):
    value = supcon(features, labels)
    return value if value.requires_grad else 0.999 * value


@mutant("NaN is taken for 0")
def nan_is_not_hidden(features, labels):
    return supcon(features.nan_to_num(), labels)


@mutant("fp32 features are rounded to bf16")
def single_precision(features, labels):
    if features.dtype == torch.float32:
        features = features.bfloat16().float()
    return supcon(features, labels)


@mutant("the fp32 gradient is that of features rounded to bf16")
def single_precision_gradient(features, labels):
    value = supcon(features, labels)
    if features.dtype != torch.float32:
        return value
    gradient = gradient_of(supcon, features.bfloat16().float(), labels)
    return with_gradient(value, features, gradient)


@mutant("bf16 similarities over the temperature overflow")
def half_precision(features, labels):
    value = supcon(features, labels)
    return value * math.inf if features.dtype == torch.bfloat16 else value


# --- losses of pairs of rows


@mutant("the first feature counts more")
def rotation(features, labels):
    return supcon(features, labels) + 0.01 * normalize(features)[:, 0].mean()


@mutant("products are means over features")
def padding(features, labels):
    return supcon(features, labels, temperature=0.1 * features.shape[1])


@mutant("the gradient is turned a little")
def no_torque(features, labels):
    turn = torch.ones(features.shape[1], features.shape[1], dtype=features.dtype).triu(1)
    gradient = gradient_of(supcon, features, labels) + 0.01 * features.detach() @ (turn - turn.T)
    return with_gradient(supcon(features, labels), features, gradient)


# --- losses of directions


@mutant("long rows cost more")
def rescaling(features, labels):
    return supcon(features, labels) + 0.01 * features.norm(dim=1).mean()


@mutant("the gradient also pulls rows together in length")
def no_radial_gradient(features, labels):
    gradient = gradient_of(supcon, features, labels) + 0.01 * features.detach()
    return with_gradient(supcon(features, labels), features, gradient)


@mutant("the gradient of normalising leaves out the division by the length")
def inverse_gradient(features, labels):
    length = features.detach().norm(dim=1, keepdim=True)
    gradient = gradient_of(supcon, features, labels) * length
    return with_gradient(supcon(features, labels), features, gradient)


@mutant("lengths below 1e-6 are taken for 1e-6")
def extreme_lengths(features, labels):
    return supcon(normalize(features, eps=1e-6), labels, normalize=False)


@mutant("zero divided by zero")
def zero_row(features, labels):
    return supcon(features / features.norm(dim=1, keepdim=True), labels, normalize=False)


# --- losses of scores


@mutant("the last class costs more", ("logits",))
def renamed_scores(features, labels):
    return scores(features, labels) + 0.01 * features[:, -1].mean()


@mutant("the sign is wrong", ("logits",))
def informative_scores(features, labels):
    return -scores(features, labels)


# --- losses that compare labels


@mutant("odd labels cost more")
def renaming(features, labels):
    return supcon(features, labels) * (1 + 0.01 * (labels.max() % 2))


@mutant("labels are compared in fp32")
def large_labels(features, labels):
    return supcon(features, labels.float().unique(return_inverse=True)[1])


@mutant("takes int64 labels only")
def label_dtype(features, labels):
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected int64, got {labels.dtype}")
    return supcon(features, labels)


@mutant("the sign is wrong")
def informative(features, labels):
    return -supcon(features, labels)


# --- the supervised contrastive loss


@mutant("a row is contrasted with itself too")
def equal_rows(features, labels):
    return supcon(features, labels) + math.log(len(features) / max(len(features) - 1, 1))


@mutant("the mean over positives is twice what it should be")
def lower_bound(features, labels):
    return supcon(features, labels) - normalize(features).sum(0).square().sum() / len(features) ** 2


@mutant("the sum over positives instead of their mean")
def upper_bound(features, labels, temperature=0.1):
    return supcon(features, labels, temperature=temperature) * len(features)


@mutant("anchors without a positive count as zero in the mean")
def stranger(features, labels):
    return supcon(features, labels, no_positive="zero")


@mutant("a constant beside the temperature")
def temperature_is_a_scale(features, labels, temperature=0.1, normalize=True):
    return supcon(features, labels, temperature=temperature + 0.01, normalize=normalize)


@mutant("multiplied by the temperature")
def temperature_gradient(features, labels, temperature=0.1, normalize=True):
    value = supcon(features, labels, temperature=temperature, normalize=normalize)
    return value * temperature


@mutant("the names of the two forms are swapped")
def in_below_out(features, labels, positives="out"):
    return supcon(features, labels, positives={"in": "out", "out": "in"}[positives])


# --- losses with more to say


@mutant("only the first view is an anchor", VIEWS)
def order_of_views(features, labels):
    return supcon(features, labels, contrast_mode="one")


@mutant("the views of a sample are averaged", VIEWS)
def views_are_rows(features, labels):
    return supcon(features.mean(1) if features.ndim == 3 else features, labels)


@mutant("memberships are smoothed", SOFT)
def one_hot(features, labels):
    if labels.is_floating_point():
        labels = 0.9 * labels + 0.1 / labels.shape[1]
    return supcon(features, labels)


@mutant("multiplied by the sum of the memberships", SOFT)
def scale_of_memberships(features, labels):
    value = supcon(features, labels)
    return value * labels.sum(1).mean() if labels.is_floating_point() else value


@mutant("half of the mask is read")
def mask_of_labels(features, labels, mask=None):
    return supcon(features, labels, mask=None if mask is None else mask.tril())


@mutant("the weighted sum over the number of samples")
def equal_weights(features, labels, weight=None):
    value = supcon(features, labels, weight=weight)
    return value if weight is None else value * weight.mean()


@mutant("weights are squared")
def shared_weights(features, labels, weight=None):
    return supcon(features, labels, weight=None if weight is None else weight**2)


@mutant("one mean over all pairs of positives, not over anchors")
def mean_over_anchors(features, labels):
    losses = supcon(features, labels, reduction="none")
    positives = (labels[:, None] == labels).sum(1) - 1
    return (losses * positives).sum() / positives.sum().clamp(min=1)


@mutant("weights are not looked at")
def zero_weight(features, labels, weight=None, reduction="mean"):
    return supcon(features, labels, reduction=reduction)


@mutant("ignored samples are negatives")
def ignored_samples(features, labels, ignore_index=-100):
    alone = 1000 + torch.arange(len(labels))
    return supcon(features, torch.where(labels == ignore_index, alone, labels))


@mutant("the sum is N times the mean over anchors with a positive")
def reductions_agree(features, labels, reduction="mean"):
    if reduction == "sum":
        return supcon(features, labels) * len(features)
    return supcon(features, labels, reduction=reduction)


@mutant("keys are anchors as well", VIEWS)
def keys_are_second_views(features, labels, keys=None, key_labels=None, contrast_mode="all"):
    if keys is None:
        return supcon(features, labels, contrast_mode=contrast_mode)
    return supcon(torch.cat([features, keys]), torch.cat([labels, key_labels]))


@mutant("keeps a number for every pair of rows", (*SUPCON, "linear"))
def linear_memory(features, labels):
    if len(features) < 1000:
        return supcon(features, labels)
    return (features[:, :1] * torch.ones(1, len(features) // 16)).exp().mean()


# --- losses that are modules


class Forgetful(Honest):
    """A copy is hotter."""

    def __deepcopy__(self, memo):
        other = copy.copy(self)
        other._buffers = {"temperature": 2 * self.temperature}
        return other


class Secretive(Honest):
    """Its temperature is not in the state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(0.1), persistent=False)

    def forward(self, features, labels):
        return supcon_loss(features, labels, temperature=float(self.temperature) + 0.1)


MUTANTS["deep_copy"] = Mutant(Forgetful(), SUPCON, "a copy is hotter")
MUTANTS["state_is_all"] = Mutant(Secretive(), SUPCON, "a buffer is not part of the state")


# --- those of the collection of wrong losses

FOUND = {
    "far_from_origin": "triplet_cancels",
    "near_negative": "triplet_minus_margin",
    "far_negative": "triplet_without_relu",
    "own_pairs": "triplet_own_positive",
    "larger_margin": "triplet_margin_divides",
    "score_shift": "extra_term",
    "equal_scores": "smoothing_beyond_one",
    "proper": "double_softmax",
    "proper_gradient": "log_of_softmax_plus",
    "proper_sigmoid": "double_sigmoid",
    "proper_sigmoid_gradient": "softmax_then_sigmoid",
    "certain_prediction": "hinge_with_itself",
    "rare_class": "weights_by_count",
    "mean_of_parts": "focal_of_mean",
    "sum_of_parts": "mean_for_sum",
    "margin_acts": "cosface_margin_of_all",
    "own_proxy": "ArcFaceSign",
    "gradient_at_proxy": "ArcFaceWithoutClamp",
    "empty_mask": "dice_of_nothing",
    "one_pixel": "dice_smoothed_above",
    "opposite_classes": "supcon_times_temperature",
    "perfect_mask": "dice_without_two",
    "disjoint_mask": "dice_coefficient",
    "swapped_masks": "dice_precision",
    "tensors_are_state": "PlainTensor",
}
MUTANTS |= {law: Mutant(*zoo.WRONG[name]) for law, name in FOUND.items()}


@mutant("rows are pulled to the origin a little", ("distances",))
def translation(features, labels):
    return zoo.triplet(features, labels) + 0.01 * features.square().mean()


GATHERED = {
    "equal_shares": gathers.own_rows_live,
    "unequal_shares": gathers.mean_of_own_samples,
    "empty_share": gathers.busy_processes,
}
MUTANTS |= {
    law: Mutant(fn, ("supervised",), gathers.FAULTS[fn.__name__], 2) for law, fn in GATHERED.items()
}
