"""Options for the paper's three benchmarks. The files name the source of each value."""

from pathlib import Path
from typing import Literal, get_args

Preset = Literal["affectnet", "ferplus", "rafdb"]
PRESETS = {name: Path(__file__).with_name(f"{name}.yaml") for name in get_args(Preset)}
