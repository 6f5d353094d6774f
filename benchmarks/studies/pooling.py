"""Compare what can take the place of a CNN's pooling, by the accuracy on real faces.

    python -m benchmarks.studies.pooling frozen --ferplus PATH --weights FILE   choose K
    python -m benchmarks.studies.pooling mobilefacenet --ferplus PATH --weights FILE
    python -m benchmarks.studies.pooling mobilefacenet --heads average --seeds 1 --save TUNED ...
    python -m benchmarks.studies.pooling tuned --ferplus PATH --weights TUNED
    python -m benchmarks.studies.pooling gentle --ferplus PATH --weights FILE    a fifth of the rate
    python -m benchmarks.studies.pooling efficientnet --ferplus PATH --weights FILE
    python -m benchmarks.studies.pooling small --ferplus PATH                    from scratch
    python -m benchmarks.studies.pooling render                                  the page of ARM

Every head ends in batch normalisation and a linear classifier. AdamW, one cycle, images mirrored at
random; the last epoch is tested, no epoch is chosen. Rows that are in benchmarks/pooling.jsonl are
not run again; `--heads`, `--noise` and `--seeds` choose among the others.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.pages import write_section
from benchmarks.studies import evidence, runs
from unmuddle import ARM
from unmuddle.arm import PublishedARM
from unmuddle.recipe.atomic import write_tensors
from unmuddle.recipe.backbones import Backbone, build_backbone
from unmuddle.recipe.data import load_data
from unmuddle.recipe.data.noise import symmetric_noise
from unmuddle.recipe.images import Standardize

RESULTS = Path(__file__).with_name("pooling.jsonl")
CLASSES = 8


class Average(nn.Module):
    """Average pooling, C features; `widened`: a matrix makes as many as `ARM` has of them."""

    def __init__(self, channels: int, _size: tuple[int, int], *, widened: bool = False) -> None:
        super().__init__()
        self.out_features = channels * (2 if widened else 1)
        self.widen = nn.Linear(channels, 2 * channels, bias=False) if widened else nn.Identity()
        self.bn = nn.BatchNorm1d(self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Feature vectors."""
        return self.bn(self.widen(x.mean((2, 3))))


class Depthwise(nn.Module):
    """Weights of the positions for every channel by itself, `kernels` of them."""

    def __init__(self, channels: int, size: tuple[int, int], *, kernels: int = 1) -> None:
        super().__init__()
        self.out_features, area = channels * kernels, size[0] * size[1]
        start = torch.full((channels, kernels, area), area**-0.5)
        if kernels > 1:  # equal ones would stay equal: each has a classifier's weight of its own
            start += 0.1 * area**-0.5 * torch.randn_like(start)
        self.weight = nn.Parameter(start)
        self.scale = area**-0.5
        self.bn = nn.BatchNorm1d(self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Feature vectors."""
        y = torch.einsum("nca,cka->nck", x.flatten(2), self.weight * self.scale)
        return self.bn(y.flatten(1))


HEADS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "average": Average,
    "average, widened": partial(Average, widened=True),
    "depthwise": Depthwise,
    "depthwise, two": partial(Depthwise, kernels=2),
    "published": PublishedARM,
    **{f"ARM, {k}": partial(ARM, maps=k) for k in (1, 2, 4, 8)},
}


class Setting(NamedTuple):
    """How a network is trained.

    Attributes:
        backbone: its name.
        size: pixels a side.
        epochs: of training.
        rate: of learning, of the backbone; 0: it is frozen.
        head_rate: of learning, of what reads the map.
        batch: images.
    """

    backbone: str
    size: int
    epochs: int
    rate: float
    head_rate: float
    batch: int


SETTINGS = {
    "frozen": Setting("mobilefacenet", 112, 12, 0.0, 2e-3, 64),
    "mobilefacenet": Setting("mobilefacenet", 112, 6, 1e-3, 2e-3, 32),
    "tuned": Setting("mobilefacenet", 112, 12, 0.0, 2e-3, 64),
    "gentle": Setting("mobilefacenet", 112, 6, 2e-4, 2e-3, 32),
    "efficientnet": Setting("tf_efficientnet_lite0", 112, 8, 1e-3, 2e-3, 32),
    "small": Setting("small", 48, 24, 3e-3, 3e-3, 64),
}


class Cell(NamedTuple):
    """One training."""

    network: str
    head: str
    noise: float
    seed: int

    def name(self) -> str:
        """Name of its row."""
        return f"{self.network}, {self.head}, noise {self.noise:g}, seed {self.seed}"


class Part(NamedTuple):
    """Images `(n, C, H, W)` or maps, and their labels."""

    images: Tensor
    labels: Tensor


@cache
def faces(ferplus: Path) -> dict[str, Part]:
    """Return training, validation and test images as stored."""
    splits = load_data(f"ferplus:{ferplus}")
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        name: Part(torch.stack([part[i][0] for i in range(len(part))]), part.labels)
        for name, part in parts.items()
    }


def create(setting: Setting, weights: Path | None) -> Backbone:
    """Build a backbone; the weights of EfficientNet-Lite0 are in timm's order under other names."""
    if setting.backbone != "tf_efficientnet_lite0":
        return build_backbone(
            setting.backbone, setting.size, weights=str(weights) if weights else None
        )
    found = build_backbone(setting.backbone, setting.size)
    assert weights is not None
    values = [*torch.load(weights, map_location="cpu", weights_only=True).values()]
    own = found.network.state_dict()
    found.network.load_state_dict(dict(zip(own, values[: len(own)], strict=True)))
    return found._replace(pixels=((0.5,) * 3, (0.5,) * 3))


def resized(images: Tensor, size: int) -> Tensor:
    """Scale images as stored."""
    if images.shape[-1] == size:
        return images
    scaled = interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round().to(torch.uint8)


@cache
def frozen_maps(ferplus: Path, weights: Path) -> dict[str, Part]:
    """Return the maps of all faces, in half precision."""
    setting = SETTINGS["frozen"]
    backbone = create(setting, weights)
    network, standardize = backbone.network.eval(), Standardize(*(backbone.pixels or ()))
    parts: dict[str, Part] = {}
    with torch.inference_mode():
        for name, (images, labels) in faces(ferplus).items():
            maps = [
                network(standardize(resized(part, setting.size))).half()
                for part in images.split(64)
            ]
            parts[name] = Part(torch.cat(maps), labels)
    return parts


def run_cell(
    cell: Cell, ferplus: Path, weights: Path | None, save: Path | None = None
) -> dict[str, Any]:
    """Train and test; return a row. The backbone's weights are saved where asked for."""
    commit, began = runs.frozen_commit(Path(__file__)), time.perf_counter()
    setting = SETTINGS[cell.network]
    torch.manual_seed(cell.seed)
    backbone = create(setting, weights)
    head = HEADS[cell.head](backbone.channels, backbone.map_size)
    classifier = nn.Linear(head.out_features, CLASSES)  # pyright: ignore[reportArgumentType]
    standardize = Standardize(*(backbone.pixels or ()))
    reading = nn.Sequential(head, classifier)
    groups = [{"params": [*reading.parameters()], "lr": setting.head_rate}]
    if setting.rate:
        parts = faces(ferplus)
        model = nn.Sequential(backbone.network, reading).to(memory_format=torch.channels_last)
        groups.append({"params": [*backbone.network.parameters()], "lr": setting.rate})
    else:
        assert weights is not None
        parts, model = frozen_maps(ferplus, weights), reading

    def logits(images: Tensor) -> Tensor:
        if not setting.rate:
            return model(images.float())
        x = standardize(resized(images, setting.size))
        return model(x.contiguous(memory_format=torch.channels_last))

    def right(part: Part) -> Tensor:
        model.eval()
        with torch.inference_mode():
            found = [logits(x).argmax(1) for x in part.images.split(64)]
        return torch.cat(found) == part.labels

    images, labels = parts["train"]
    if cell.noise:
        labels = symmetric_noise(labels, CLASSES, cell.noise, cell.seed)
    optimizer = torch.optim.AdamW(groups)
    steps = len(labels) // setting.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps * setting.epochs
    )
    validation: list[float] = []
    for _ in range(setting.epochs):
        model.train()
        for ids in torch.randperm(len(labels))[: steps * setting.batch].split(setting.batch):
            x = images[ids]
            if setting.rate:
                x = torch.where(torch.rand(len(ids), 1, 1, 1) < 0.5, x.flip(3), x)
            optimizer.zero_grad()
            cross_entropy(logits(x), labels[ids]).backward()
            optimizer.step()
            schedule.step()
        validation.append(float(right(parts["val"]).double().mean()))
    hits = right(parts["test"])
    if save is not None:
        write_tensors(save, backbone.network.state_dict())
    return {
        "name": cell.name(),
        **cell._asdict(),
        "val": validation[-1],
        "test": float(hits.double().mean()),
        "features": head.out_features,
        "epochs": validation,
        "seconds": round(time.perf_counter() - began),
        "setting": setting._asdict(),
        "commit": commit,
        "right": "".join(str(int(hit)) for hit in hits),
        "maps": head.weight.tolist() if isinstance(head, ARM) else None,
    }


def draw(rows: list[dict[str, Any]], ferplus: Path, path: Path) -> None:
    """Draw the mean face and what the two maps of the first seed look at."""
    import matplotlib.pyplot as plt

    face = faces(ferplus)["train"].images[:, 0].float().mean(0)
    found = [row for row in rows if row["head"] == "ARM, 2" and row.get("maps")]
    found = [row for row in found if (row["noise"], row["seed"]) == (0.0, 1)]
    figure, axes = plt.subplots(
        1, 1 + 2 * len(found), figsize=(2 + 4 * len(found), 2.3), layout="constrained"
    )
    axes[0].imshow(face, cmap="gray")
    axes[0].set(title="mean face", xticks=[], yticks=[])
    titles = [f"{row['network']}, map {k + 1}" for row in found for k in range(2)]
    maps = [torch.tensor(weights) for row in found for weights in row["maps"]]
    for axis, title, weights in zip(axes[1:], titles, maps, strict=True):
        reach = float(weights.abs().max())
        extent = (-0.5, 47.5, 47.5, -0.5)
        axis.imshow(face, cmap="gray")
        image = axis.imshow(
            weights, cmap="RdBu_r", vmin=-reach, vmax=reach, alpha=0.6, extent=extent
        )
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.savefig(path, dpi=120)


def table(rows: list[dict[str, Any]]) -> str:
    """Return accuracies and differences to average pooling as Markdown."""
    lines: list[list[Any]] = []
    for network, noise in itertools.product(SETTINGS, (0.0, 0.2)):
        of_network = [row for row in rows if (row["network"], row["noise"]) == (network, noise)]
        base = [row for row in of_network if row["head"] == "average"]
        for head in HEADS:
            mine = [row for row in of_network if row["head"] == head]
            if not mine:
                continue
            cells = [evidence.spread(row[name] for row in mine) for name in ("val", "test")]
            gain = evidence.described([] if head == "average" else evidence.paired(base, mine))
            lines.append(
                [network, f"{noise:.0%}", head, mine[0]["features"], len(mine), *cells, *gain]
            )
    names = [
        "network",
        "noise",
        "head",
        "features",
        "seeds",
        "validation",
        "test",
        *evidence.COMPARED,
    ]
    return evidence.table(names, lines)


def main() -> None:
    """Run what is missing; write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=[*SETTINGS, "render"])
    parser.add_argument("--ferplus", type=Path)
    parser.add_argument("--plot", type=Path, help="with render: draw the maps on the mean face")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--save", type=Path, help="file for the weights of the trained backbone")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=[*HEADS])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    a = parser.parse_args()
    if a.network == "render":
        rows = runs.read_results(RESULTS)
        write_section("arm.md", "pooling", table(rows))
        if a.plot:
            draw(rows, a.ferplus, a.plot)
        return
    for seed, noise, head in itertools.product(a.seeds, a.noise, a.heads):
        cell = Cell(a.network, head, noise, seed)
        if cell.name() not in {row["name"] for row in runs.read_results(RESULTS)}:
            runs.add_result(run_cell(cell, a.ferplus, a.weights, a.save), RESULTS)


if __name__ == "__main__":
    main()
