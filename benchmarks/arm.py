"""ARM against the published form and against average pooling: agreement first, then time."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timing import alternating_medians
from unmuddle import ARM, attach_arm, fold_arm
from unmuddle.arm import FeatureMap, find_features


class PerChannel(nn.Module):
    """The published form: pixel shuffle, one convolution a channel, the means of the batch."""

    def __init__(self, arm: ARM) -> None:
        super().__init__()
        self.arm = arm

    def forward(self, x: Tensor) -> Tensor:
        """Feature vectors."""
        r, kernel = self.arm.upscale, self.arm.weight[None, None]
        x = nn.functional.pixel_shuffle(x, r)
        maps = [
            nn.functional.conv2d(x[:, c : c + 1], kernel, stride=r // 2) for c in range(x.shape[1])
        ]
        x = self.arm.bn(torch.cat(maps, 1))
        common = x.mean((0, 1)) if self.training else self.arm.running_common
        return (x.mean(1) + self.arm.alpha * common).flatten(1)


class AveragePooling(nn.Module):
    """A network with the head that ARM replaces."""

    def __init__(self, features: FeatureMap, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print milliseconds, and the first column's over each other one."""
    print(f"\n{title}, fp32, {torch.get_num_threads()} threads, milliseconds\n")
    names = list(next(iter(rows.values())))
    print(
        f"| | {' | '.join(names)} | {names[0]} / {names[1]} |\n" + "|---" * (len(names) + 2) + "|"
    )
    for row, seconds in rows.items():
        cells = [f"{seconds[name] * 1e3:.2f}" for name in names]
        print(f"| {row} | {' | '.join(cells)} | {seconds[names[0]] / seconds[names[1]]:.2f} |")


def module_alone() -> None:
    """The paper's sizes."""
    arm = ARM(512, (7, 7))
    loop = PerChannel(copy.deepcopy(arm))
    x = torch.randn(64, 512, 7, 7, requires_grad=True)

    def step(module: nn.Module) -> tuple[Tensor, ...]:
        leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
        return torch.autograd.grad(module(x).square().sum(), leaves)

    torch.testing.assert_close(arm(x), loop(x), rtol=1e-3, atol=1e-3)
    modules = {"per-channel loop": loop, "unmuddle": arm}
    steps = {name: (lambda m=module: step(m)) for name, module in modules.items()}
    rows = {"training step": alternating_medians(steps, repeats=50)}
    loop.arm, folded = copy.deepcopy(arm), fold_arm(arm)
    loop.eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), loop(x), rtol=1e-3, atol=1e-3)
        calls = {"per-channel loop": lambda: loop(x), "unmuddle": lambda: folded(x)}
        rows["eval, folded"] = alternating_medians(calls, repeats=50)
    table("ARM alone, (64, 512, 7, 7)", rows)


def whole_network(size: int = 224, batch: int = 16) -> None:
    """ResNet-18 with ARM against the same with average pooling."""
    pooled = AveragePooling(find_features(create("resnet18")), 512, 7)
    amended = attach_arm(create("resnet18"), 7, input_size=size)
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % 7

    def step(model: nn.Module) -> None:
        cross_entropy(model(images), labels).backward()
        model.zero_grad()

    models = {"with ARM": amended, "average pooling": pooled}
    steps = {name: (lambda m=model: step(m)) for name, model in models.items()}
    rows = {"training step": alternating_medians(steps, repeats=15)}
    models = {"with ARM": fold_arm(amended), "average pooling": pooled.eval()}
    with torch.no_grad():
        calls = {name: (lambda m=model: m(images)) for name, model in models.items()}
        rows["eval, folded"] = alternating_medians(calls, repeats=15)
        calls["with ARM"] = lambda: amended.eval()(images)
        rows["eval, as trained"] = alternating_medians(calls, repeats=15)
    table(f"ResNet-18, ({batch}, 3, {size}, {size})", rows)


def create(name: str) -> nn.Module:
    """Random weights."""
    from torchvision.models import get_model

    return get_model(name)


def main() -> None:
    """Print Markdown tables."""
    torch.manual_seed(0)
    module_alone()
    whole_network()


if __name__ == "__main__":
    main()
