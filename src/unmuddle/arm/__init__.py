"""Amending representation module (Shi & Zhu 2021, arXiv 2103.10189)."""

from unmuddle.arm.functional import affinity, arrange, choose_upscale, de_albino, output_size
from unmuddle.arm.module import ARM

__all__ = ["ARM", "affinity", "arrange", "choose_upscale", "de_albino", "output_size"]
