"""Draw how far zero padding has worn down the border of a trained network's feature map."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from unmuddle.arm import Erosion, erosion
from unmuddle.recipe.backbones import build_backbone
from unmuddle.recipe.data import load_data
from unmuddle.recipe.images import Standardize

IMAGE_SIZE = 48


def profile(run: Path, padding_mode: str) -> Erosion:
    """Of the network of a run, on its test images, with another padding if asked for."""
    network = build_backbone("small", IMAGE_SIZE, weights=str(run / "model.safetensors")).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = padding_mode
    test = load_data("synthetic", image_size=IMAGE_SIZE, seed=0).test
    return erosion(network, (Standardize()(images) for images, _ in DataLoader(test, 128)))


def draw(profiles: dict[str, Erosion], path: Path) -> None:
    """The maps, and the profiles over the distance to the border."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(profiles) + 1, figsize=(9, 2.8), layout="constrained")
    top = max(float(found.energy.max()) for found in profiles.values())
    for axis, (name, found) in zip(axes[1:], profiles.items(), strict=True):
        image = axis.imshow(found.energy, vmin=0, vmax=top, cmap="viridis")
        axis.set(title=name, xticks=[], yticks=[])
        axes[0].plot(found.by_distance, "o-", label=name)
    figure.colorbar(image, ax=axes[1:], label="energy (mean 1)")
    axes[0].set(xlabel="pixels from the border", ylabel="energy (mean 1)", ylim=(0, None))
    axes[0].set_xticks(range(len(found.by_distance)))
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print a Markdown table; draw a plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run without ARM, of the small backbone")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    profiles = {f"{name} padding": profile(arguments.run, name) for name in ("zeros", "replicate")}
    distances = range(len(profiles["zeros padding"].by_distance))
    print("| pixels from the border | " + " | ".join(map(str, distances)) + " |")
    print("|---" * (len(distances) + 1) + "|")
    for name, found in profiles.items():
        cells = [f"{value:.2f}" for value in found.by_distance.tolist()]
        print(f"| energy, {name} | {' | '.join(cells)} |")
    if arguments.plot:
        draw(profiles, arguments.plot)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
