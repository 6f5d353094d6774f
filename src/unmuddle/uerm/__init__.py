"""Uncertainty-guided relabeling with a ledger (after Yang et al. 2023 and Wang et al. 2020)."""

from unmuddle.uerm.dataset import LedgerDataset
from unmuddle.uerm.evidence import Distribution, Evidence
from unmuddle.uerm.importance import AttentionHead, rank_penalty
from unmuddle.uerm.ledger import LabelLedger
from unmuddle.uerm.module import UERM, UERMOutput
from unmuddle.uerm.noise import NoiseModel, fit_noise, posterior
from unmuddle.uerm.policy import Proposals, bayes, ema_margin, guarded, scn
from unmuddle.uerm.records import Comparison, Event, Suggestion
from unmuddle.uerm.uncertainty import (
    attention,
    ensemble,
    entropy,
    margin,
    mislabeled,
    neighbours,
    odds,
)

__all__ = [
    "UERM",
    "AttentionHead",
    "Comparison",
    "Distribution",
    "Event",
    "Evidence",
    "LabelLedger",
    "LedgerDataset",
    "NoiseModel",
    "Proposals",
    "Suggestion",
    "UERMOutput",
    "attention",
    "bayes",
    "ema_margin",
    "ensemble",
    "entropy",
    "fit_noise",
    "guarded",
    "margin",
    "mislabeled",
    "neighbours",
    "odds",
    "posterior",
    "rank_penalty",
    "scn",
]
