"""Losses as people write them: wrong ones from public bug reports and common slips, and right ones.

None of them was written for a particular law. The faults are those of the sources; the code is ours.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

METRIC = ("pairwise", "supervised", "distances", "negatives", "mean")
HINGE = (*METRIC, "hinge", "margin")
COSINE = ("pairwise", "normalised", "supervised", "negatives")
CONTRASTIVE = (*COSINE, "contrastive")
SCORES = ("logits", "mean")
CROSS_ENTROPY = (*SCORES, "cross_entropy")
PROPER = (*CROSS_ENTROPY, "proper", "certain")
BINARY = (*SCORES, "proper_sigmoid", "certain")
MASKS = ("dice",)


class Specimen(NamedTuple):
    """A loss, what its author says that it is, and what is wrong with it, if anything."""

    fn: Callable[..., Tensor]
    kinds: tuple[str, ...]
    fault: str


WRONG: dict[str, Specimen] = {}
MISSED = {"easiest_positive", "poly_sign", "confidence_rewarded"}  # no law sees these
RIGHT: dict[str, Specimen] = {}


def wrong(fault: str, *kinds: str):
    def register(fn):
        WRONG[fn.__name__] = Specimen(fn() if isinstance(fn, type) else fn, kinds, fault)
        return fn

    return register


def right(*kinds: str):
    def register(fn):
        RIGHT[fn.__name__] = Specimen(fn() if isinstance(fn, type) else fn, kinds, "")
        return fn

    return register


def squared_distances(x):
    return (x[:, None] - x).square().sum(2)


def distances(x):
    return squared_distances(x).clamp(min=1e-24).sqrt()


def same_class(y):
    return y[:, None] == y


def others(y):
    return ~torch.eye(len(y), dtype=torch.bool)


def mean_of(values, chosen):
    return values[chosen].sum() / chosen.sum().clamp(min=1)


def mean_over_anchors(log_p, positive):
    n = positive.sum(1)
    losses = -log_p.masked_fill(~positive, 0).sum(1)
    return (losses / n.clamp(min=1)).sum() / (n > 0).sum().clamp(min=1)


def triplets(y, own=False):
    """`(N, N, N)` True for anchor, positive, negative."""
    positive = same_class(y) if own else same_class(y) & others(y)
    return positive[:, :, None] & ~same_class(y)[:, None]


def one_hot(x, y):
    return F.one_hot(y, x.shape[1]).to(x)


# Triplets and pairs


@right(*HINGE)
def triplet(x, y, margin=0.3):
    d = squared_distances(x)
    return mean_of((d[:, :, None] - d[:, None] + margin).relu(), triplets(y))


@right(*METRIC)
def batch_hard_soft_margin(x, y):
    d, same = distances(x), same_class(y)
    valid = (same & others(y)).any(1) & (~same).any(1)
    far = d.masked_fill(~(same & others(y)), -torch.inf).max(1).values
    near = d.masked_fill(same, torch.inf).min(1).values
    if not valid.any():
        return 0 * x.sum()
    return F.softplus(far[valid] - near[valid]).mean()


@right(*HINGE)
def batch_hard(x, y, margin=0.5):
    d, same = distances(x), same_class(y)
    valid = (same & others(y)).any(1) & (~same).any(1)
    far = d.masked_fill(~(same & others(y)), -torch.inf).max(1).values
    near = d.masked_fill(same, torch.inf).min(1).values
    return (far[valid] - near[valid] + margin).relu().sum() / valid.sum().clamp(min=1)


@right(*HINGE)
def pair_margin(x, y, margin=1.0):  # Hadsell et al. 2006
    d, same = distances(x), same_class(y)
    values = torch.where(same, d**2, (margin - d).relu() ** 2)
    return mean_of(values, others(y))


@right("pairwise", "normalised", "supervised", "hinge", "margin", "mean")
def cosine_margin(x, y, margin=0.2):
    z = F.normalize(x, eps=1e-30)
    s = z @ z.T
    return mean_of((s[:, None] - s[:, :, None] + margin).relu(), triplets(y))


@wrong("the margin has the wrong sign", *HINGE)
def triplet_minus_margin(x, y):
    d = squared_distances(x)
    return mean_of((d[:, :, None] - d[:, None] - 0.3).relu(), triplets(y))


@wrong("a larger margin asks for less", *HINGE)
def triplet_margin_divides(x, y, margin=0.3):
    d = squared_distances(x)
    return mean_of((d[:, :, None] - d[:, None] + 0.1 / margin).relu(), triplets(y))


@wrong("positive and negative are swapped", *HINGE)
def triplet_swapped(x, y):
    d = squared_distances(x)
    return mean_of((d[:, None] - d[:, :, None] + 0.3).relu(), triplets(y))


@wrong("no relu: negatives are pushed away for ever", *HINGE)
def triplet_without_relu(x, y):
    d = squared_distances(x)
    return mean_of(d[:, :, None] - d[:, None] + 0.3, triplets(y))


@wrong("every anchor is among its own positives", *HINGE)
def triplet_own_positive(x, y):
    d = squared_distances(x)
    return mean_of((d[:, :, None] - d[:, None] + 0.3).relu(), triplets(y, own=True))


@wrong("the hardest negative is the anchor itself, at distance 0", *HINGE)
def triplet_own_negative(x, y):
    d, same = squared_distances(x), same_class(y)
    far = d.masked_fill(~same, -torch.inf).max(1).values
    near = d.masked_fill(same & others(y), torch.inf).min(1).values
    return (far - near + 0.3).relu().mean()


@wrong("the farthest negative is taken for the hardest (tripletloss #57)", *HINGE)
def triplet_easiest_negative(x, y):
    d, same = squared_distances(x), same_class(y)
    valid = (same & others(y)).any(1) & (~same).any(1)
    far = d.masked_fill(~same, -torch.inf).max(1).values
    near = d.masked_fill(same, -torch.inf).max(1).values
    return (far[valid] - near[valid] + 0.3).relu().sum() / valid.sum().clamp(min=1)


@wrong("the masked diagonal is the hardest negative, at distance infinity (PaAno #1)",
       "pairwise", "normalised", "supervised", "hinge")  # fmt: skip
def triplet_infinite_diagonal(x, y):
    z = F.normalize(x, eps=1e-30)
    s = (z @ z.T).masked_fill(~others(y), -torch.inf)
    hardest = (1 - s).max(1).values
    positive = (1 - z @ z.T).masked_fill(~same_class(y), 0).max(1).values
    return (positive - hardest + 0.5).relu().mean()


@wrong("the mean is over all N^3 triples, valid or not", *HINGE)
def triplet_mean_over_cube(x, y):
    d = squared_distances(x)
    return ((d[:, :, None] - d[:, None] + 0.3).relu() * triplets(y)).mean()


@wrong("|a|^2 + |b|^2 - 2 ab cancels far from the origin", *HINGE)
def triplet_cancels(x, y):
    n = x.square().sum(1)
    d = (n[:, None] + n - 2 * x @ x.T).clamp(min=0)
    return mean_of((d[:, :, None] - d[:, None] + 0.3).relu(), triplets(y))


@wrong("the square root of a distance of 0 has an infinite slope", *HINGE)
def triplet_root_of_zero(x, y):
    d = squared_distances(x).sqrt()
    return mean_of((d[:, :, None] - d[:, None] + 0.3).relu(), triplets(y))


@wrong("distances are means over features", *HINGE)
def triplet_mean_distance(x, y):
    d = (x[:, None] - x).square().mean(2)
    return mean_of((d[:, :, None] - d[:, None] + 0.3).relu(), triplets(y))


@wrong("the soft margin overflows", *METRIC)
def soft_margin_overflows(x, y):
    d = distances(x)
    return mean_of((1 + (d[:, :, None] - d[:, None]).exp()).log(), triplets(y))


@wrong("negatives within the margin are pulled, not pushed", *HINGE)
def pair_margin_flipped(x, y):
    d, same = distances(x), same_class(y)
    return mean_of(torch.where(same, d**2, (d - 1).relu() ** 2), others(y))


@wrong("the label says different, not same", *HINGE)
def pair_margin_inverted(x, y):
    d, same = distances(x), same_class(y)
    return mean_of(torch.where(~same, d**2, (1 - d).relu() ** 2), others(y))


@wrong("no clamp: negatives beyond the margin are pulled back", *HINGE)
def pair_margin_without_clamp(x, y):
    d, same = distances(x), same_class(y)
    return mean_of(torch.where(same, d**2, (1 - d) ** 2), others(y))


@wrong("pairs of a row with itself count in the mean", *HINGE)
def pair_margin_with_diagonal(x, y):
    d, same = distances(x), same_class(y)
    return torch.where(same, d**2, (1 - d).relu() ** 2).mean()


@wrong("labels are compared in fp32", *HINGE)
def triplet_float_labels(x, y):
    d = squared_distances(x)
    return mean_of((d[:, :, None] - d[:, None] + 0.3).relu(), triplets(y.float()))


@wrong("the first half of the batch are the anchors", *HINGE)
def triplet_half_anchors(x, y):
    d, chosen = squared_distances(x), triplets(y).clone()
    chosen[len(y) // 2 :] = False
    return mean_of((d[:, :, None] - d[:, None] + 0.3).relu(), chosen)


@wrong("the positive is detached", *HINGE)
def triplet_detached(x, y):
    positive = (x[:, None] - x.detach()).square().sum(2)
    d = squared_distances(x)
    return mean_of((positive[:, :, None] - d[:, None] + 0.3).relu(), triplets(y))


# Contrastive


@right(*CONTRASTIVE)
def supcon(x, y, temperature=0.1):
    z = F.normalize(x, eps=1e-30)
    s = (z @ z.T / temperature).masked_fill(~others(y), -torch.inf)
    positive = same_class(y) & others(y)
    return mean_over_anchors(s - s.logsumexp(1, keepdim=True), positive)


@right(*COSINE)
def multi_similarity(x, y, alpha=2.0, beta=10.0, base=0.5):  # Wang et al. 2019
    z = F.normalize(x, eps=1e-30)
    s, positive, negative = z @ z.T, same_class(y) & others(y), ~same_class(y)
    zero = s.new_zeros(len(s), 1)
    pull = torch.cat([zero, (-alpha * (s - base)).masked_fill(~positive, -torch.inf)], 1)
    push = torch.cat([zero, (beta * (s - base)).masked_fill(~negative, -torch.inf)], 1)
    return (pull.logsumexp(1) / alpha + push.logsumexp(1) / beta).mean()


@right(*COSINE)
def circle(x, y, margin=0.25, gamma=8.0):  # Sun et al. 2020
    z = F.normalize(x, eps=1e-30)
    s, positive, negative = z @ z.T, same_class(y) & others(y), ~same_class(y)
    pull = -gamma * (1 + margin - s).detach().relu() * (s - 1 + margin)
    push = gamma * (s + margin).detach().relu() * (s - margin)
    pull = pull.masked_fill(~positive, -torch.inf)
    push = push.masked_fill(~negative, -torch.inf)
    valid = positive.any(1) & negative.any(1)
    each = F.softplus(pull[valid].logsumexp(1) + push[valid].logsumexp(1))
    return each.sum() / valid.sum().clamp(min=1)


# The detached weights of the circle loss are published: its gradient is not its derivative.
# torch's multi_margin_loss compares with NaN, which is false.
EXEMPT = {"circle": {"directional_derivative"}, "hinge": {"nan_is_not_hidden"}}


@wrong("the temperature multiplies", *CONTRASTIVE)
def supcon_times_temperature(x, y, temperature=0.1):
    return supcon(x, y, temperature=1 / temperature)


@wrong("a row is contrasted with itself", *CONTRASTIVE)
def supcon_with_itself(x, y):
    z = F.normalize(x, eps=1e-30)
    s, positive = z @ z.T / 0.1, same_class(y) & others(y)
    return mean_over_anchors(s - s.logsumexp(1, keepdim=True), positive)


@wrong("a row is its own positive", *CONTRASTIVE)
def supcon_own_positive(x, y):
    z = F.normalize(x, eps=1e-30)
    s = z @ z.T / 0.1
    log_p = s - s.masked_fill(~others(y), -torch.inf).logsumexp(1, keepdim=True)
    if len(x) < 2:
        return 0 * x.sum()
    return -mean_of(log_p, same_class(y))


@wrong("one mean over all positive pairs", *CONTRASTIVE)
def supcon_mean_over_pairs(x, y):
    z = F.normalize(x, eps=1e-30)
    s = (z @ z.T / 0.1).masked_fill(~others(y), -torch.inf)
    if len(x) < 2:
        return 0 * x.sum()
    return -mean_of(s - s.logsumexp(1, keepdim=True), same_class(y) & others(y))


@wrong("anchors without a positive count in the mean", *CONTRASTIVE)
def supcon_over_all_anchors(x, y):
    return supcon(x, y) * (same_class(y).sum(1) > 1).double().mean().to(x)


@wrong("positives are left out of the denominator", *CONTRASTIVE)
def supcon_negatives_only(x, y):
    z = F.normalize(x, eps=1e-30)
    s, same = z @ z.T / 0.1, same_class(y)
    below = s.masked_fill(same, -100.0).logsumexp(1, keepdim=True)
    positive = same & others(y)
    return mean_over_anchors(s - below, positive)


@wrong("exponentials overflow at a low temperature in fp32", *CONTRASTIVE)
def supcon_overflows(x, y):
    z = F.normalize(x, eps=1e-30)
    e = (z @ z.T / 0.01).exp() * others(y)
    positive = same_class(y) & others(y)
    return mean_over_anchors((e / e.sum(1, keepdim=True)).clamp(min=1e-300).log(), positive)


@wrong("a constant is added to the norm", *CONTRASTIVE)
def supcon_added_to_norm(x, y):
    z = x / (x.norm(dim=1, keepdim=True) + 1e-3)
    s = (z @ z.T / 0.1).masked_fill(~others(y), -torch.inf)
    positive = same_class(y) & others(y)
    return mean_over_anchors(s - s.logsumexp(1, keepdim=True), positive)


@wrong("rows are not normalised", *COSINE)
def dot_product(x, y):
    s = (x @ x.T).masked_fill(~others(y), -torch.inf)
    if len(x) < 2:
        return 0 * x.sum()
    return -mean_of(s - s.logsumexp(1, keepdim=True), same_class(y) & others(y))


# Scores of classes


@right(*PROPER)
def cross_entropy(x, y):
    return F.cross_entropy(x, y)


@right(*PROPER)
def nll_of_log_softmax(x, y):
    return F.nll_loss(x.log_softmax(1), y)


@right(*CROSS_ENTROPY)
def label_smoothing(x, y):
    return F.cross_entropy(x, y, label_smoothing=0.1)


@right(*SCORES, "proper", "certain")
def brier(x, y):
    return (x.softmax(1) - one_hot(x, y)).square().sum(1).mean()


@right(*SCORES, "shift_invariant", "certain")
def focal(x, y, gamma=2.0):  # Lin et al. 2017
    log_p = x.log_softmax(1).gather(1, y[:, None])[:, 0]
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


@right(*SCORES, "shift_invariant", "certain")
def hinge(x, y):
    return F.multi_margin_loss(x, y) if x.shape[1] > 1 else 0 * x.sum()


@right(*BINARY)
def one_against_all(x, y):
    return F.binary_cross_entropy_with_logits(x, one_hot(x, y))


@right(*SCORES, "shift_invariant", "balanced", "certain")
def balanced(x, y):
    counts = y.bincount(minlength=x.shape[1]).to(x)
    return F.cross_entropy(x, y, weight=1 / counts.clamp(min=1))


@right("sum", "proper", "certain")
def summed(x, y):
    return F.cross_entropy(x, y, reduction="sum")


@right("sum", "cross_entropy")
def summed_smoothing(x, y):
    return F.cross_entropy(x, y, reduction="sum", label_smoothing=0.2)


@right("sum", "shift_invariant", "certain")
def summed_focal(x, y):
    return focal(x, y) * len(x)


@right(*BINARY)
def sigmoid_brier(x, y):
    return (x.sigmoid() - one_hot(x, y)).square().mean()


@right(*BINARY)
def sum_over_classes(x, y):
    target = one_hot(x, y)
    return -(target * F.logsigmoid(x) + (1 - target) * F.logsigmoid(-x)).sum(1).mean()


@right(*SCORES, "shift_invariant", "balanced")
def balanced_focal(x, y, gamma=2.0):
    log_p = x.log_softmax(1).gather(1, y[:, None])[:, 0]
    weight = 1 / y.bincount(minlength=x.shape[1]).to(x)[y]
    return (-weight * (1 - log_p.exp()) ** gamma * log_p).sum() / weight.sum()


@right(*SCORES, "shift_invariant", "balanced", "certain")
def effective_number(x, y, beta=0.9):  # Cui et al. 2019
    counts = y.bincount(minlength=x.shape[1]).to(x)[y]
    weight = (1 - beta) / (1 - beta**counts)
    return (weight * F.cross_entropy(x, y, reduction="none")).sum() / weight.sum()


@right(*SCORES, "shift_invariant", "margin")
def cosface(x, y, margin=0.35, scale=4.0):  # Wang et al. 2018, of cosines
    return F.cross_entropy(scale * (x - margin * one_hot(x, y)), y)


@wrong("softmax before a loss that applies it", *PROPER)
def double_softmax(x, y):
    return F.cross_entropy(x.softmax(1), y)


@wrong("1e-3 is added in the logarithm", *PROPER)
def log_of_softmax_plus(x, y):
    return F.nll_loss((x.softmax(1) + 1e-3).log(), y)


@wrong("probabilities in place of their logarithms", *PROPER)
def nll_of_softmax(x, y):
    return F.nll_loss(x.softmax(1), y)


@wrong("a sigmoid before a softmax loss", *PROPER)
def sigmoid_then_cross_entropy(x, y):
    return F.cross_entropy(x.sigmoid(), y)


@wrong("a sigmoid before a loss that applies it (focal-loss-pytorch #5)", *BINARY)
def double_sigmoid(x, y):
    return F.binary_cross_entropy_with_logits(x.sigmoid(), one_hot(x, y))


@wrong("softmax before a loss that applies a sigmoid (Loss_ToolBox-PyTorch #11)", *BINARY)
def softmax_then_sigmoid(x, y):
    return F.binary_cross_entropy_with_logits(x.softmax(1), one_hot(x, y))


@wrong("smoothed targets do not sum to one (Loss_ToolBox-PyTorch #4)", *CROSS_ENTROPY)
def smoothing_beyond_one(x, y):
    targets = one_hot(x, y).clamp(0.1, 0.9)
    return -(targets * x.log_softmax(1)).sum(1).mean()


@wrong("the mean is over classes too", *CROSS_ENTROPY)
def mean_over_classes(x, y):
    return -(one_hot(x, y) * x.log_softmax(1)).mean()


@wrong("a sum where a mean is promised", *PROPER)
def sum_for_mean(x, y):
    return F.cross_entropy(x, y, reduction="sum")


@wrong("a mean where a sum is promised", "logits", "sum", "proper")
def mean_for_sum(x, y):
    return F.cross_entropy(x, y)


@wrong("frequent classes weigh more", *SCORES, "shift_invariant", "balanced")
def weights_by_count(x, y):
    counts = y.bincount(minlength=x.shape[1]).to(x)
    return F.cross_entropy(x, y, weight=counts / counts.sum())


@wrong("weights are not used (focal-loss-with-smoothing #1)", *SCORES, "balanced")
def weights_unused(x, y):
    return focal(x, y)


@wrong("confident predictions are focused on", *SCORES, "shift_invariant", "certain")
def focal_inverted(x, y):
    log_p = x.log_softmax(1).gather(1, y[:, None])[:, 0]
    return (-(log_p.exp() ** 2) * log_p).mean()


@wrong("times the exponent in place of to the power (fudannlp16 #8)", *PROPER)
def focal_times_gamma(x, y):
    log_p = x.log_softmax(1).gather(1, y[:, None])[:, 0]
    return (-(1 - log_p.exp()) * 2 * log_p).mean()


@wrong("the true class competes with itself", *SCORES, "shift_invariant", "certain")
def hinge_with_itself(x, y):
    return (1 + x - x.gather(1, y[:, None])).relu().mean()


@wrong("the normaliser has one term too many", *PROPER)
def extra_term(x, y):
    return (x.exp().sum(1).add(1).log() - x.gather(1, y[:, None])[:, 0]).mean()


@wrong("exponentials without taking out the largest", *PROPER)
def scores_overflow(x, y):
    return (x.exp().sum(1).log() - x.gather(1, y[:, None])[:, 0]).mean()


@wrong("the divergence is taken the other way round", *PROPER)
def reversed_divergence(x, y):
    p, target = x.softmax(1), one_hot(x, y)
    return (p * (p.log() - target.clamp(min=1e-8).log())).sum(1).mean()


@wrong("squared error of scores, not of probabilities", *SCORES, "proper")
def squared_scores(x, y):
    return (x - one_hot(x, y)).square().sum(1).mean()


@wrong("the margin is taken from all scores", *SCORES, "shift_invariant", "margin")
def cosface_margin_of_all(x, y, margin=0.35):
    return F.cross_entropy(4 * (x - margin), y)


@wrong("a focal loss of the mean", *SCORES, "shift_invariant", "certain")
def focal_of_mean(x, y):
    mean = F.cross_entropy(x, y)
    return (1 - (-mean).exp()) ** 2 * mean


@right(*SCORES, "shift_invariant", "balanced")
def logit_adjustment(x, y):  # Menon et al. 2021, with the counts of the batch
    counts = y.bincount(minlength=x.shape[1]).to(x) + 1
    return F.cross_entropy(x + (counts / counts.sum()).log(), y)


@wrong("the margin helps the true class", *SCORES, "shift_invariant", "margin")
def cosface_plus_margin(x, y, margin=0.35):
    return F.cross_entropy(4 * (x + margin * one_hot(x, y)), y)


# Masks


@right(*MASKS)
def dice(p, m):
    return 1 - (2 * (p * m).sum() + 1e-6) / (p.sum() + m.sum() + 1e-6)


@right(*MASKS)
def jaccard(p, m):
    both = (p * m).sum()
    return 1 - (both + 1e-6) / (p.sum() + m.sum() - both + 1e-6)


@right(*MASKS)
def dice_of_squares(p, m):  # Milletari et al. 2016
    return 1 - 2 * (p * m).sum() / (p.square().sum() + m.square().sum() + 1e-6)


@wrong("the factor 2 is missing", *MASKS)
def dice_without_two(p, m):
    return 1 - (p * m).sum() / (p.sum() + m.sum() + 1e-6)


@wrong("the coefficient in place of the loss (easytorch #38)", *MASKS)
def dice_coefficient(p, m):
    return 2 * (p * m).sum() / (p.sum() + m.sum() + 1e-6)


@wrong("the union counts the intersection twice", *MASKS)
def jaccard_double_union(p, m):
    return 1 - (p * m).sum() / (p.sum() + m.sum() + 1e-6)


@wrong("only false positives count", *MASKS)
def dice_precision(p, m):
    return 1 - 2 * (p * m).sum() / (2 * p.sum() + 1e-6)


@right("overlap")
def tversky(p, m, alpha=0.3, beta=0.7):  # Salehi et al. 2017
    both = (p * m).sum()
    return 1 - (both + 1) / (both + alpha * (p * (1 - m)).sum() + beta * ((1 - p) * m).sum() + 1)


@right("overlap")
def entropy_and_dice(p, m):
    return F.binary_cross_entropy(p, m) + dice(p, m)


@wrong("NaN where mask and prediction are empty", *MASKS)
def dice_of_nothing(p, m):
    return 1 - 2 * (p * m).sum() / (p.square().sum() + m.square().sum())


@wrong("a constant in the numerator alone", *MASKS)
def dice_smoothed_above(p, m):
    return 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum()).clamp(min=1e-6)


# Modules


class Proxies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=random))

    def cosines(self, x):
        return F.normalize(x, eps=1e-30) @ F.normalize(self.weight, eps=1e-30).T.to(x)


@right("proxies", "normalised")
class ArcFace(Proxies):  # Deng et al. 2019
    def forward(self, x, y, margin=0.3, scale=8.0):
        c = self.cosines(x)
        sine = (1 - c.square()).clamp(min=1e-9).sqrt()
        turned = c * math.cos(margin) - sine * math.sin(margin)
        return F.cross_entropy(scale * torch.where(one_hot(c, y) > 0, turned, c), y)


@right("proxies", "normalised")
class NormFace(Proxies):  # Wang et al. 2017
    def forward(self, x, y):
        return F.cross_entropy(8 * self.cosines(x), y)


@right("proxies")
class CentreDistances(Proxies):  # Snell et al. 2017
    def forward(self, x, y):
        return F.cross_entropy(-(x[:, None] - self.weight.to(x)).square().sum(2), y)


@wrong("the nearest class gets the lowest score", "proxies", "normalised")
class ArcFaceSign(Proxies):
    def forward(self, x, y):
        return F.cross_entropy(-8 * self.cosines(x), y)


@wrong("labels play no part", "proxies", "normalised")
class ProxiesWithoutLabels(Proxies):
    def forward(self, x, y):
        return F.cross_entropy(8 * self.cosines(x), y * 0)


@wrong("the arc cosine has an infinite slope at a proxy", "proxies", "normalised")
class ArcFaceWithoutClamp(Proxies):
    def forward(self, x, y):
        c = self.cosines(x)
        turned = (c.acos() + 0.3).cos()
        return F.cross_entropy(8 * torch.where(one_hot(c, y) > 0, turned, c), y)


@wrong("centres are a plain tensor: not saved, not moved", "pairwise")
class PlainTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(2.0)

    def forward(self, x, y):
        return self.scale.to(x) * triplet(x, y)


@wrong("a running mean of earlier batches", *SCORES)
class RunningMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x, y):
        value = F.cross_entropy(x, y)
        self.mean.lerp_(value.detach().to(self.mean), 0.1)
        return value - self.mean.to(x)


@right("pairwise", "supervised")
class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        return self.scale.to(x) * triplet(x - x.mean(0), y)


@right("cross_entropy", "mean")
class Smoothing(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(label_smoothing=0.1)


@right(*PROPER)
class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(()))

    def forward(self, x, y):
        return self.weight.to(x) * F.cross_entropy(x, y)


# What no law sees


@wrong("the easiest positive is taken for the hardest", *HINGE)
def easiest_positive(x, y):
    d, same = squared_distances(x), same_class(y)
    positive = same & others(y)
    valid = positive.any(1) & (~same).any(1)
    far = d.masked_fill(~positive, torch.inf).min(1).values
    near = d.masked_fill(same, torch.inf).min(1).values
    return (far[valid] - near[valid] + 0.3).relu().sum() / valid.sum().clamp(min=1)


@wrong("the polynomial term has the wrong sign", *SCORES, "shift_invariant", "certain")
def poly_sign(x, y):  # of PolyLoss, Leng et al. 2022
    log_p = x.log_softmax(1).gather(1, y[:, None])[:, 0]
    return (-log_p - (1 - log_p.exp())).mean()


@wrong("confidence is rewarded, not penalised", *SCORES, "shift_invariant")
def confidence_rewarded(x, y):  # Pereyra et al. 2017
    log_p = x.log_softmax(1)
    return F.cross_entropy(x, y) - 0.1 * (log_p.exp() * log_p).sum(1).mean()
