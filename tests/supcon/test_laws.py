"""The laws of `unmuddle.testing`, on every backend, option and module of the loss."""

from functools import partial

import pytest
import torch

from unmuddle import SupConLoss, supcon_loss
from unmuddle.testing import LAWS, Law, Loss, check_loss

CONTRASTIVE = ("pairwise", "normalised", "supervised", "contrastive", "soft", "views")
PAIRS = tuple(kind for kind in CONTRASTIVE if kind != "contrastive")
LOSSES = {
    "reference": (partial(supcon_loss, impl="reference"), CONTRASTIVE),
    "tiled": (partial(supcon_loss, impl="tiled"), (*CONTRASTIVE, "linear")),
    "triton": (partial(supcon_loss, impl="triton"), CONTRASTIVE),
    "module": (SupConLoss(), (*CONTRASTIVE, "linear")),
    "trained temperature": (SupConLoss(torch.nn.Parameter(torch.tensor(0.2))), CONTRASTIVE),
    "in": (partial(supcon_loss, positives="in"), CONTRASTIVE),
    "negatives": (partial(supcon_loss, denominator="negatives"), PAIRS),
    "losses": (lambda features, labels: supcon_loss(features, labels, reduction="none"), PAIRS),
    "sharp": (partial(supcon_loss, temperature=0.01), CONTRASTIVE),
    "soft": (partial(supcon_loss, temperature=10.0), CONTRASTIVE),
}


CASES = [
    pytest.param(fn, kinds, law, id=f"{name}-{law.name}")
    for name, (fn, kinds) in LOSSES.items()
    for law in LAWS.values()
    if law.applies(Loss(fn, kinds))
]


@pytest.mark.parametrize(("fn", "kinds", "law"), CASES)
def test_law(fn, kinds, law: Law) -> None:
    check_loss(fn, kinds=kinds, laws=[law]).raise_if_failed()
