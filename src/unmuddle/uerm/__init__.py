"""Uncertainty-guided relabeling with a ledger (after Yang et al. 2023 and Wang et al. 2020)."""

from unmuddle.uerm.ledger import Comparison, Event, LabelLedger
from unmuddle.uerm.module import UERM, UERMOutput
from unmuddle.uerm.policy import Evidence, Proposals, ema_margin, scn
from unmuddle.uerm.uncertainty import AttentionHead, label_margin, margin_uncertainty, rank_penalty

__all__ = [
    "UERM",
    "AttentionHead",
    "Comparison",
    "Event",
    "Evidence",
    "LabelLedger",
    "Proposals",
    "UERMOutput",
    "ema_margin",
    "label_margin",
    "margin_uncertainty",
    "rank_penalty",
    "scn",
]
