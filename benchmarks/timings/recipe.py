"""What the recipe costs: all parts against plain cross-entropy, the loader alone, memory.

`python -m benchmarks.timings.recipe` measures the memory of an epoch of 100,000 drawn faces. Plain
cross-entropy sees as many images a step: twice the samples, since the parts see two views.
"""

import argparse
import json
import resource
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import nn

from benchmarks.timings.timing import ALONE, compared, take_turns
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import files, load_data
from unmuddle.recipe.loaders import training_loader
from unmuddle.recipe.train import train

BATCH, STEPS, ROUNDS = 64, 4, 4
PARTS = {"unmuddle": "supcon,arm,uerm", "cross-entropy": "none"}


def a_step(backbone: str = "small") -> dict[str, Any]:
    """A training step on `2 BATCH` images, with all parts and without."""
    chosen = {"unmuddle": PARTS["unmuddle"]} if ALONE else PARTS
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(ROUNDS):
        for name, parts in chosen.items():
            seconds[name] += [2 * BATCH / rate for rate in _images_per_second(parts, backbone)]
    return compared(seconds)


def _images_per_second(parts: str, backbone: str) -> list[float]:
    """Of each epoch but the first, which warms up."""
    views = 1 if parts == "none" else 2
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            TrainConfig(
                data=f"synthetic:{BATCH * STEPS * 2 // views}", noise="symmetric:0.2",
                batch_size=BATCH * 2 // views, backbone=backbone, parts=parts, epochs=2,
                warmup=0.0, out=f"{folder}/run",
            ),
            Console(quiet=True),
        )  # fmt: skip
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [views * json.loads(line)["samples_per_second"] for line in lines[1:]]


def a_loaded_batch(workers: int) -> dict[str, Any]:
    """Decoding a batch of 128 PNG files, of a set too large to be kept in memory."""
    files.IN_MEMORY = 0
    faces = load_data("synthetic:2000").train
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(faces)):
            for split in ("train", "test") if number < 20 else ("train",):
                path = Path(folder, split, str(number % 7), f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(faces[number][0].permute(1, 2, 0).numpy()).save(path)
        data = load_data(f"folder:{folder}", image_size=48).train
        config = TrainConfig(batch_size=128, workers=workers)
        loader = training_loader(data, config, 7, torch.Generator())
        epochs = take_turns({"unmuddle": partial(list, loader)}, repeats=3)
    return compared({name: [s / len(loader) for s in found] for name, found in epochs.items()})


CASES = {
    f"a step on {2 * BATCH} images of 48 x 48, `small`": a_step,
    "128 PNG files of 48 x 48, in the training process": partial(a_loaded_batch, 0),
    "128 PNG files of 48 x 48, 2 workers": partial(a_loaded_batch, 2),
}


def small_network() -> nn.Module:
    """So that an epoch of many samples takes minutes."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2)
    )


def watch_memory() -> None:
    """Print the peak after a tenth of an epoch of 100,000 samples, and at the end."""
    peaks: list[tuple[float, float]] = []
    ended = threading.Event()

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def watch() -> None:
        while not ended.wait(0.2):
            peaks.append((time.monotonic(), peak()))

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            TrainConfig(
                data="synthetic:100000", backbone="recipe:small_network", batch_size=128, epochs=1,
                warmup=0.0, out=f"{folder}/run",
            ),
            Console(quiet=True),
        )  # fmt: skip
        ended.set()
        seconds = json.loads((run / "metrics.jsonl").read_text())["seconds"]
    end = time.monotonic()
    tenth = next(mb for moment, mb in peaks if moment > end - 0.9 * seconds)
    print(f"100,000 samples, {seconds:.0f} s: peak {tenth:.0f} MB after a tenth of the epoch, ")
    print(f"{peak():.0f} MB at the end: {peak() / tenth:.3f} times (at most 1.1)")


if __name__ == "__main__":
    argparse.ArgumentParser(description=watch_memory.__doc__).parse_args()
    watch_memory()
