"""Uncertainty-guided relabeling with a ledger (after Yang et al. 2023 and Wang et al. 2020)."""

from unmuddle.uerm.dataset import LedgerDataset
from unmuddle.uerm.distribution import Distribution
from unmuddle.uerm.evidence import Evidence, gather_evidence
from unmuddle.uerm.ledger import LabelLedger
from unmuddle.uerm.module import UERM
from unmuddle.uerm.noise import NoiseModel, fit_noise, posterior
from unmuddle.uerm.output import UERMOutput
from unmuddle.uerm.policy import Proposals, bayes, ema_margin, scn
from unmuddle.uerm.records import Comparison, Event, Suggestion

__all__ = [
    "UERM",
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
    "bayes",
    "ema_margin",
    "fit_noise",
    "gather_evidence",
    "posterior",
    "scn",
]
