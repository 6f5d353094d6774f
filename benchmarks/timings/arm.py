"""ARM against average pooling, as published against a loop: agreement first, then time."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.timings.timing import DEVICE, compared, take_turns
from unmuddle import attach_arm, fold_arm
from unmuddle.arm import PublishedARM, find_features
from unmuddle.recipe.backbones import build_backbone


class PerChannel(nn.Module):
    """The steps as published: pixel shuffle, a convolution of each channel, the batch's mean."""

    def __init__(self, arm: PublishedARM) -> None:
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

    def __init__(self, features: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def alone(training: bool) -> dict[str, Any]:
    """The published module at the paper's size; in eval, folded."""
    torch.manual_seed(0)
    arm = PublishedARM(512, (7, 7)).to(DEVICE)
    loop = PerChannel(copy.deepcopy(arm))
    x = torch.randn(64, 512, 7, 7, device=DEVICE, requires_grad=True)
    if training:
        torch.testing.assert_close(arm(x), loop(x), rtol=1e-3, atol=1e-3)

        def step(module: nn.Module) -> object:
            leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
            return torch.autograd.grad(module(x).square().sum(), leaves)

        calls = {"unmuddle": partial(step, arm), "per-channel loop": partial(step, loop)}
        return compared(take_turns(calls, repeats=50))
    arm(x)  # a training batch
    loop.arm, folded = copy.deepcopy(arm), fold_arm(arm)
    loop.eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), loop(x), rtol=1e-3, atol=1e-3)
        calls = {"unmuddle": lambda: folded(x), "per-channel loop": lambda: loop(x)}
        return compared(take_turns(calls, repeats=50))


def whole_network(name: str, size: int, training: bool, batch: int = 16) -> dict[str, Any]:
    """A network whose map has 512 channels with ARM, against the same with average pooling."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    features = (
        find_features(resnet18()) if name == "ResNet-18" else build_backbone(name, size).network
    )
    pooled = AveragePooling(copy.deepcopy(features), 512, 7).to(DEVICE)
    amended = attach_arm(features, 7, input_size=size, features=features).to(DEVICE)
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    labels = torch.arange(batch, device=DEVICE) % 7

    def step(model: nn.Module) -> None:
        cross_entropy(model(images), labels).backward()
        model.zero_grad()

    if training:
        calls = {"unmuddle": partial(step, amended), "average pooling": partial(step, pooled)}
        return compared(take_turns(calls, repeats=8))
    with torch.no_grad():
        amended(images)  # statistics of a training batch
        models = {"unmuddle": fold_arm(amended), "average pooling": pooled.eval()}
        calls = {name: partial(model, images) for name, model in models.items()}
        return compared(take_turns(calls, repeats=8))


NETWORKS = {"ResNet-18": 224, "mobilefacenet": 112}
CASES = {
    f"{name}, (16, 3, {size}, {size}), {'training step' if training else 'eval, folded'}": partial(
        whole_network, name, size, training
    )
    for name, size in NETWORKS.items()
    for training in (True, False)
} | {
    "as published, alone, (64, 512, 7, 7), training step": partial(alone, True),
    "as published, alone, (64, 512, 7, 7), eval, folded": partial(alone, False),
}
