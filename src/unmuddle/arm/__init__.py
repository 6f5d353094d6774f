"""Amending representation module (Shi & Zhu 2021, arXiv 2103.10189)."""

from unmuddle.arm.attach import ARMClassifier, attach_arm, from_authors
from unmuddle.arm.erosion import Erosion, erosion
from unmuddle.arm.features import FeatureMap, find_features
from unmuddle.arm.fold import FoldedARM, FoldedPublishedARM, fold_arm
from unmuddle.arm.functional import (
    affinity,
    amend,
    arrange,
    choose_upscale,
    de_albino,
    output_size,
    transposed_kernel,
)
from unmuddle.arm.module import ARM, weigh_positions
from unmuddle.arm.published import PublishedARM

__all__ = [
    "ARM",
    "ARMClassifier",
    "Erosion",
    "FeatureMap",
    "FoldedARM",
    "FoldedPublishedARM",
    "PublishedARM",
    "affinity",
    "amend",
    "arrange",
    "attach_arm",
    "choose_upscale",
    "de_albino",
    "erosion",
    "find_features",
    "fold_arm",
    "from_authors",
    "output_size",
    "transposed_kernel",
    "weigh_positions",
]
