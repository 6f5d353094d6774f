"""`unmuddle train`.

Examples:
  unmuddle train --data folder:PATH --backbone resnet18 --image_size 96 --out runs/one
  unmuddle train --preset rafdb --data rafdb:PATH --noise symmetric:0.2 --parts uerm
  torchrun --nproc-per-node 4 -m unmuddle train --preset affectnet --data affectnet:PATH
"""

import signal
from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from rich.console import Console

from unmuddle.cli import INTERRUPTED, report
from unmuddle.cli.parser import Parser, add_option, documented
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.presets import PRESETS, Preset
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.train import train

EXIT_CODES = {"finished": 0, "diverged": 1, "paused": 0, "interrupted": INTERRUPTED}


def add_options(parser: Parser) -> None:
    """Add the options of `TrainConfig`, and a file of them."""
    parser.usage = "unmuddle train [--OPTION VALUE ...] | --resume RUN [--data DATA] [--labels CSV]"
    text = "YAML file of options, as config.yaml in a run folder"
    parser.add_argument("--config", action=_FromFile, default=SUPPRESS, help=text)
    described = documented(TrainConfig)
    for field in fields(TrainConfig):
        add_option(parser, field.name, *described[field.name], field.default)


class _FromFile(Action):
    """Read options from a YAML file, as if they were given in its place."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, _: str | None = None
    ) -> None:
        try:  # keep values as text, which the parser converts as on the command line
            text = Path(values).expanduser().read_text(encoding="utf-8")
            options = yaml.load(text, yaml.BaseLoader) or {}
            items = [(name.replace("-", "_"), value) for name, value in options.items()]
        except (OSError, ValueError, RuntimeError, AttributeError, yaml.YAMLError) as error:
            parser.error(f"--config {values}: {error}")
        defaults = {field.name: field.default for field in fields(TrainConfig)}
        for name, value in items:
            if name not in defaults or not isinstance(value, str):
                what = "expected one value" if name in defaults else "cannot be set in a file"
                parser.error(f"--config {values}: {name}: {what}")
            if value in ("null", "~", "") and defaults[name] is None:
                setattr(namespace, name, None)
            else:
                parser.parse_args([f"--{name}={value}"], namespace)


def run(
    *,
    preset: Preset | None = None,
    resume: Path | None = None,
    pause_after: int | None = None,
    quiet: bool = False,
    print_config: bool = False,
    **options: Any,
) -> int:
    """Train a classifier on images with ambiguous labels; without options, on drawn faces.

    Args:
        preset: options for a benchmark
        resume: stopped run to continue, with other --labels or moved --data if given
        pause_after: number of complete epochs at which to stop, for --resume to continue
        quiet: print only the run folder
        print_config: print all options and exit
        **options: fields of `TrainConfig`
    """
    given = yaml.safe_load(PRESETS[preset].read_text()) if preset else {}
    chosen = TrainConfig(**given | options)
    if resume is not None:
        if replace(chosen, labels=None, data=TrainConfig.data) != TrainConfig():
            raise UsageError(
                "--resume: goes on with the options of the run; only --labels, --pause_after and, "
                "if it has moved, --data can be given"
            )
        config = RunFolder(resume).config("--resume")
        chosen = replace(config, out=str(resume), data=options.get("data", config.data))
    if print_config:
        print(yaml.safe_dump(asdict(chosen), sort_keys=False), end="")
        return 0
    if preset is not None and "data" not in options:
        raise UsageError(f"--preset {preset}: needs --data {preset}:PATH")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by the time limit of a cluster
    path = train(
        chosen,
        Console(quiet=quiet, emoji=False),
        resume=resume is not None,
        labels=options.get("labels"),
        pause_after=pause_after,
    )
    if not PartialState().is_main_process:
        return 0
    report.write([path], quiet=quiet)
    if quiet:
        print(path)
    return EXIT_CODES[RunFolder(path).summary()["status"]]
