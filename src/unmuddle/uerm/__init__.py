"""Uncertainty-guided relabeling with a ledger (after Yang et al. 2023 and Wang et al. 2020)."""

from unmuddle.uerm.dataset import LedgerDataset
from unmuddle.uerm.evidence import Distribution, Evidence
from unmuddle.uerm.importance import AttentionHead, rank_penalty
from unmuddle.uerm.ledger import Comparison, Event, LabelLedger, Suggestion
from unmuddle.uerm.module import UERM, UERMOutput
from unmuddle.uerm.policy import Proposals, ema_margin, guarded, log_odds, scn
from unmuddle.uerm.uncertainty import attention, ensemble, entropy, margin, neighbours

__all__ = [
    "UERM",
    "AttentionHead",
    "Comparison",
    "Distribution",
    "Event",
    "Evidence",
    "LabelLedger",
    "LedgerDataset",
    "Proposals",
    "Suggestion",
    "UERMOutput",
    "attention",
    "ema_margin",
    "ensemble",
    "entropy",
    "guarded",
    "log_odds",
    "margin",
    "neighbours",
    "rank_penalty",
    "scn",
]
