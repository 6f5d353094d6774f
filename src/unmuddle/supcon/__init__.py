"""Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362)."""

from unmuddle.supcon.functional import choose_impl, supcon_loss
from unmuddle.supcon.module import SupConLoss

__all__ = ["SupConLoss", "choose_impl", "supcon_loss"]
