"""PyTorch modules for classification with ambiguous labels.

Three independent parts, each importable alone: `SupConLoss`, `ARM` and `UERM`.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmuddle.arm import ARM as ARM
    from unmuddle.arm import attach_arm as attach_arm
    from unmuddle.arm import fold_arm as fold_arm
    from unmuddle.supcon import FeatureQueue as FeatureQueue
    from unmuddle.supcon import SupConLoss as SupConLoss
    from unmuddle.supcon import supcon_loss as supcon_loss
    from unmuddle.uerm import UERM as UERM
    from unmuddle.uerm import LabelLedger as LabelLedger

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

_HOMES = {
    "ARM": "unmuddle.arm",
    "FeatureQueue": "unmuddle.supcon",
    "LabelLedger": "unmuddle.uerm",
    "SupConLoss": "unmuddle.supcon",
    "UERM": "unmuddle.uerm",
    "attach_arm": "unmuddle.arm",
    "fold_arm": "unmuddle.arm",
    "supcon_loss": "unmuddle.supcon",
}


def __getattr__(name: str) -> Any:
    # Parts are loaded on first use; importing one never imports another.
    if name == "__version__":
        try:
            return metadata.version("unmuddle")
        except metadata.PackageNotFoundError:
            return "0+not.installed"  # imported from a source tree
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unmuddle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
