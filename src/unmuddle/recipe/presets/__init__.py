"""Options for the paper's three benchmarks, each value with its source in the file."""

from pathlib import Path

PRESETS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
