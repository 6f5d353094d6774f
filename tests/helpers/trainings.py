"""A training that has not begun, whose parts a test can exchange."""

from typing import Any

from rich.console import Console

from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.training import Training, build_accelerator


def built(config: TrainConfig, **options: Any) -> Training:
    run = RunFolder(config.run_path())
    accelerator = build_accelerator(config, run.path)
    return Training(config, run, accelerator, Console(quiet=True), **options)
