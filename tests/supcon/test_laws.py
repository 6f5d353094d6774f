"""The laws of `unmuddle.testing`, on every backend, option and module of the loss."""

from functools import partial

import pytest
import torch

from unmuddle import SupConLoss, supcon_loss
from unmuddle.testing import parametrize_with_laws

CONTRASTIVE = ("pairwise", "normalised", "supervised", "contrastive", "soft", "views")
LINEAR = (*CONTRASTIVE, "linear")
PAIRS = tuple(kind for kind in CONTRASTIVE if kind != "contrastive")


@parametrize_with_laws(partial(supcon_loss, impl="reference"), kinds=CONTRASTIVE)
def test_reference(law) -> None:
    law()


@parametrize_with_laws(partial(supcon_loss, impl="tiled"), kinds=LINEAR)
def test_tiled(law) -> None:
    law()


@parametrize_with_laws(partial(supcon_loss, impl="dense"), kinds=CONTRASTIVE)
def test_dense(law) -> None:
    law()


@parametrize_with_laws(SupConLoss(), kinds=LINEAR)
def test_module(law) -> None:
    law()


@pytest.mark.slow
@parametrize_with_laws(SupConLoss(torch.nn.Parameter(torch.tensor(0.2))), kinds=CONTRASTIVE)
def test_trained_temperature(law) -> None:
    law()


@parametrize_with_laws(partial(supcon_loss, positives="in"), kinds=CONTRASTIVE)
def test_mean_inside_the_logarithm(law) -> None:
    law()


@parametrize_with_laws(partial(supcon_loss, denominator="negatives"), kinds=PAIRS)
def test_negatives_in_the_denominator(law) -> None:
    law()


def losses(features, labels):
    return supcon_loss(features, labels, reduction="none")


@pytest.mark.slow
@parametrize_with_laws(losses, kinds=PAIRS)
def test_losses_of_anchors(law) -> None:
    law()


@pytest.mark.slow
@parametrize_with_laws(partial(supcon_loss, temperature=0.01), kinds=CONTRASTIVE)
def test_low_temperature(law) -> None:
    law()


@pytest.mark.slow
@parametrize_with_laws(partial(supcon_loss, temperature=10.0), kinds=CONTRASTIVE)
def test_high_temperature(law) -> None:
    law()
