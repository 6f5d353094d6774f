"""Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362)."""

from unmuddle.supcon.anchors import valid_anchors
from unmuddle.supcon.loss import SupConLoss, choose_impl, supcon_loss
from unmuddle.supcon.queue import FeatureQueue

__all__ = ["FeatureQueue", "SupConLoss", "choose_impl", "supcon_loss", "valid_anchors"]
