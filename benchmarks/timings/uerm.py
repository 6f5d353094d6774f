"""What UERM costs: a batch beside a training step, the end of an epoch, the state of ImageNet."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.timings.timing import DEVICE, compared, take_turns
from unmuddle import UERM

BATCH, SIDE, CLASSES = 64, 112, 8
MODES: dict[str, dict[str, Any]] = {
    "hard labels": {},
    "top-k history": {"top_k": 4},
    "attention": {"estimator": "attention", "feature_dim": 512},
}


def a_batch(mode: str) -> dict[str, Any]:
    """`UERM` on a batch of 64, and a ResNet-18 training step on it at 112 x 112."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=CLASSES).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE)
    labels = torch.randint(CLASSES, (BATCH,), device=DEVICE)

    def step() -> None:
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    samples = 12_271  # RAF-DB's training faces
    uerm = UERM(torch.randint(CLASSES, (samples,)), CLASSES, **MODES[mode]).to(DEVICE)
    features = torch.randn(BATCH, 512, device=DEVICE)
    logits = torch.randn(BATCH, CLASSES, device=DEVICE)
    calls = {
        "unmuddle": lambda: uerm(features, logits, torch.randperm(samples, device=DEVICE)[:BATCH]),
        "ResNet-18 step": step,
    }
    return compared(take_turns(calls, repeats=5))


def end_of_epoch(policy: str, samples: int = 300_000) -> dict[str, Any]:
    """`end_epoch` when a fifth of the labels is contradicted."""
    torch.manual_seed(0)
    given = torch.randint(CLASSES, (samples,), device=DEVICE)
    wrong = torch.rand(samples, device=DEVICE) < 0.2
    leaning = torch.where(wrong, (given + 1) % CLASSES, given)
    logits = torch.randn(samples, CLASSES, device=DEVICE)
    ids = torch.arange(samples, device=DEVICE)
    logits[ids, leaning] += 4

    def fresh() -> UERM:
        uerm = UERM(given, CLASSES, policy=policy, warmup_epochs=0)
        uerm.observe(logits, logits, ids)
        return uerm

    rounds = [fresh() for _ in range(4)]
    return compared(take_turns({"unmuddle": lambda: rounds.pop().end_epoch()}, repeats=3))


def state_of_imagenet(samples: int = 1_281_167, classes: int = 1000) -> dict[str, Any]:
    """A batch on a top-k state that is allocated and touched; its megabytes."""
    given = torch.randint(classes, (samples,), device=DEVICE)
    uerm = UERM(given, classes, top_k=32, dtype=torch.float16)
    state: dict[str, Tensor] = uerm.state_dict()
    megabytes = sum(v.numel() * v.element_size() for v in state.values()) / 1e6
    ids = torch.arange(0, samples, samples // 256, device=DEVICE)[:256]
    logits = torch.randn(256, classes, device=DEVICE)
    batch = (logits, logits, ids)
    seconds = take_turns({"unmuddle": lambda: uerm(*batch)}, repeats=9)
    return compared(seconds, megabytes={"unmuddle": megabytes})


CASES = {f"a batch of {BATCH}, {mode}": partial(a_batch, mode) for mode in MODES}
CASES |= {
    f"end_epoch, {policy}, 300,000 x 8": partial(end_of_epoch, policy)
    for policy in ("bayes", "ema_margin", "scn")
}
CASES["a batch of 256, 1,281,167 x 1,000, top-k history"] = state_of_imagenet
