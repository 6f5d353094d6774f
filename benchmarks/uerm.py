"""What UERM costs: a batch against a training step, the end of an epoch, the state of ImageNet."""

import argparse
import time

import torch
import torchvision
from torch.nn.functional import cross_entropy

from timing import alternating_medians
from unmuddle import UERM

BATCH, SIDE, CLASSES = 64, 112, 8
MODES = {
    "hard labels": {},
    "soft targets": {"outcome": "soft"},
    "top-k history": {"history": "topk", "k": 4},
    "attention": {"estimator": "attention", "feature_dim": 512},
    "neighbours": {"estimator": "neighbours", "feature_dim": 512},
}


def per_batch() -> None:
    """Milliseconds a batch beside those of a ResNet-18 training step."""
    network = torchvision.models.resnet18(num_classes=CLASSES)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))

    def step() -> None:
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    samples = 12_271  # RAF-DB's training faces
    given = torch.randint(CLASSES, (samples,))
    modules = {name: UERM(given, CLASSES, **options) for name, options in MODES.items()}
    features, logits = torch.randn(BATCH, 512), torch.randn(BATCH, CLASSES)
    ids = torch.randperm(samples)[:BATCH]
    calls = {name: lambda m=m: m(features, logits, ids) for name, m in modules.items()}
    seconds = alternating_medians({"ResNet-18 step": step} | calls, repeats=15)

    whole = seconds.pop("ResNet-18 step")
    print(f"\nResNet-18 step, batch {BATCH}, {SIDE} x {SIDE}: {whole * 1e3:.0f} ms\n")
    print("| UERM with | ms a batch | share of the step |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value * 1e3:.2f} | {value / whole:.2%} |")


def end_of_epoch(samples: int) -> None:
    """Seconds of `end_epoch` when a fifth of the labels is contradicted."""
    torch.manual_seed(0)
    given = torch.randint(CLASSES, (samples,))
    wrong = torch.rand(samples) < 0.2
    leaning = torch.where(wrong, (given + 1) % CLASSES, given)
    logits = torch.randn(samples, CLASSES)
    logits[torch.arange(samples), leaning] += 4
    for policy in ("bayes", "ema_margin", "scn"):
        uerm = UERM(given, CLASSES, policy=policy, warmup_epochs=0)
        uerm.observe(torch.zeros(samples, 1), logits, torch.arange(samples))
        start = time.perf_counter()
        events = uerm.end_epoch()
        seconds = time.perf_counter() - start
        print(f"end_epoch, {policy}, {samples} x {CLASSES}: {seconds:.2f} s, {len(events)} events")


def state(samples: int, classes: int) -> None:
    """Bytes of a top-k state, allocated and touched."""
    labels = torch.randint(classes, (samples,))
    uerm = UERM(labels, classes, history="topk", dtype=torch.float16)
    total = sum(v.numel() * v.element_size() for v in uerm.state_dict().values())
    ids = torch.arange(0, samples, samples // 256)[:256]
    uerm(torch.zeros(256, 1), torch.randn(256, classes), ids)
    print(f"state of {samples} x {classes}, the 32 largest in float16: {total / 1e9:.2f} GB")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300_000, help="of the end of an epoch")
    arguments = parser.parse_args()
    per_batch()
    end_of_epoch(arguments.samples)
    state(1_281_167, 1000)


if __name__ == "__main__":
    main()
