"""Options for the paper's three benchmarks. The files name the source of each value."""

from pathlib import Path

PRESETS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
