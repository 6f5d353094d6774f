"""What the recipe costs: all parts against plain cross-entropy, the loader alone, memory.

    python benchmarks/recipe.py            steps and loader
    python benchmarks/recipe.py --memory   an epoch of 100,000 drawn faces

Plain cross-entropy sees as many images a step: twice the samples, since the parts see two views.
"""

import argparse
import json
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from torch import nn

from unmuddle.recipes.config import TrainConfig
from unmuddle.recipes.data import load_data
from unmuddle.recipes.loaders import training_loader
from unmuddle.recipes.train import train

STEPS = 4  # of an epoch


def images_per_second(parts: str, backbone: str, batch: int, epochs: int) -> list[float]:
    """Of each epoch but the first, which warms up."""
    views = 1 if parts == "none" else 2
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            TrainConfig(
                data=f"synthetic:{batch * STEPS * 2 // views}", noise="symmetric:0.2",
                batch_size=batch * 2 // views, backbone=backbone, parts=parts, epochs=epochs,
                warmup=0.0, out=f"{folder}/run",
            ),
            Console(quiet=True),
        )  # fmt: skip
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [views * json.loads(line)["samples_per_second"] for line in lines[1:]]


def compare_steps(backbone: str, batch: int, rounds: int) -> float:
    """Print what the parts cost a step; returns images a second with all of them."""
    rates: dict[str, list[float]] = {"none": [], "supcon,arm,uerm": []}
    for _ in range(rounds):
        for parts, found in rates.items():
            found += images_per_second(parts, backbone, batch, 2)
    plain, full = (statistics.median(found) for found in rates.values())
    for parts, found in rates.items():
        seconds = 2 * batch / statistics.median(found)
        print(f"{backbone}, {2 * batch} images a step, {parts}: {seconds:.3f} s a step")
    print(f"all parts: {plain / full - 1:+.1%} time a step (at most +10 %)")
    return full


def loader_images_per_second(workers: int) -> float:
    """Of decoding files and batching them."""
    faces = load_data("synthetic:2000").train
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(faces)):
            for split in ("train", "test") if number < 20 else ("train",):
                path = Path(folder, split, str(number % 7), f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(faces[number][0].permute(1, 2, 0).numpy()).save(path)
        data = load_data(f"folder:{folder}", image_size=48).train
        loader = training_loader(data, TrainConfig(batch_size=128, workers=workers), 7)
        list(loader)  # starts the workers
        began = time.perf_counter()
        for _ in range(3):
            list(loader)
        return 3 * len(loader) * 128 / (time.perf_counter() - began)


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    if a.memory:
        watch_memory()
        return
    full = compare_steps(a.backbone, a.batch, a.rounds)
    for workers in (0, 2):
        rate = loader_images_per_second(workers)
        print(
            f"loader, {workers} workers: {rate:.0f} samples/s, {2 * rate / full:.0f} times what "
            "training consumes (at least 3)"
        )


if __name__ == "__main__":
    main()
