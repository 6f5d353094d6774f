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


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", LOSSES)
def test_law(name: str, law: Law) -> None:
    fn, kinds = LOSSES[name]
    if not law.applies(Loss(fn, kinds)):
        pytest.skip("not of this loss")
    (result,) = check_loss(fn, kinds=kinds, laws=[law]).results
    result.raise_if_failed()
