"""Options for the paper's three benchmarks. The files name the source of each value."""

from pathlib import Path
from typing import Literal

Preset = Literal["affectnet", "ferplus", "rafdb"]
PRESETS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
