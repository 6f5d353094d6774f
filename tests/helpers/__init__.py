"""What tests share: problems, data sets in their owners' layouts, losses, networks, processes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
