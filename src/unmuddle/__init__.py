"""PyTorch modules for classification with ambiguous labels.

Three independent parts, each importable alone: `SupConLoss`, `ARM` and `UERM`.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmuddle.arm import ARM, attach_arm, fold_arm
    from unmuddle.supcon import FeatureQueue, SupConLoss, supcon_loss
    from unmuddle.uerm import UERM, LabelLedger

    __version__: str

__all__ = [
    "ARM",
    "UERM",
    "FeatureQueue",
    "LabelLedger",
    "SupConLoss",
    "attach_arm",
    "fold_arm",
    "supcon_loss",
]

_PARTS = {
    "arm": ("ARM", "attach_arm", "fold_arm"),
    "supcon": ("FeatureQueue", "SupConLoss", "supcon_loss"),
    "uerm": ("UERM", "LabelLedger"),
}


def __getattr__(name: str) -> Any:
    # Parts are loaded on first use; importing one never imports another.
    if name == "__version__":
        try:
            return metadata.version("unmuddle")
        except metadata.PackageNotFoundError:
            return "0+not.installed"  # imported from a source tree
    for part, names in _PARTS.items():
        if name in names:
            return getattr(import_module(f"unmuddle.{part}"), name)
    raise AttributeError(f"module 'unmuddle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
