"""Report of a machine: what it has, whether the parts agree on every device, and their speed."""

import os
import platform
from collections.abc import Callable, Generator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from unmuddle.arm import ARM, fold_arm
from unmuddle.supcon import supcon_loss
from unmuddle.supcon.loss import HAS_TRITON, Impl, choose_impl
from unmuddle.testing import (
    assert_gradient_within_budget,
    assert_within_budget,
    batch_invariance,
)
from unmuddle.uerm import UERM

PACKAGES = ("torch", "triton", "numpy", "timm", "torchvision", "accelerate", "onnxruntime")
SHAPES = ((5, 3), (130, 40), (1025, 128))  # N, D; ragged, so that no block is full
SIZES = (256, 1024, 4096)
SECONDS = 1.0  # that a timing may take


class Check(NamedTuple):
    """One thing that has to hold; `error` says what is wrong, and is empty if nothing is."""

    name: str
    error: str


def environment() -> dict[str, str]:
    """Versions, devices, and what `impl="auto"` stands for on each."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        found[package] = version(package) if find_spec(package) else "not installed"
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    found["cpu"] = f"{torch.get_num_threads()} threads, bf16 {'fast' if native else 'slow'}"
    for device in _devices()[1:]:
        found[str(device)] = torch.cuda.get_device_name(device) if _is_cuda(device) else "yes"
    for device in _devices():
        small, large = choose_impl("auto", device, pairs=1), choose_impl("auto", device)
        also = "" if small == large else f", for small batches {small}"
        found[f"SupConLoss on {device}"] = f"auto is {large}{also}"
    return found


def checks() -> Generator[Check]:
    """Compare each backend on each device with fp64 on the CPU."""
    for device in _devices():
        for impl in _backends(device):
            yield _check(f"SupConLoss, {impl}, {device}", partial(_supcon, device, impl))
        yield _check(f"ARM, folded, {device}", partial(_arm, device))
        yield _check(f"UERM, {device}", partial(_uerm, device))


def speeds() -> Generator[tuple[str, float]]:
    """Median milliseconds of forward and backward."""
    for device in _devices():
        for size in SIZES:
            features, labels = _problem(size, 128, device)
            for impl in ("reference", *_backends(device)):
                name = f"SupConLoss, N = {size}, D = 128, {impl}, {device}"
                yield name, _milliseconds(partial(_loss, features, labels, impl))
        x = torch.randn(64, 512, 7, 7, device=device, requires_grad=True)
        arm, pool = ARM(512, (7, 7)).to(device), nn.AdaptiveAvgPool2d(1)
        for name, module in (("ARM", arm), ("average pooling", pool)):
            yield (
                f"{name}, (64, 512, 7, 7), {device}",
                _milliseconds(partial(_train, module, x)),
            )


def _train(module: nn.Module, x: Tensor) -> None:
    module(x).square().sum().backward()


def _devices() -> list[torch.device]:
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        devices += [torch.device(kind.type, i) for i in range(torch.accelerator.device_count())]
    return devices


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _backends(device: torch.device) -> tuple[Impl, ...]:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    runs_kernels = HAS_TRITON and (_is_cuda(device) or is_interpreted)
    return ("dense", "tiled", "triton") if runs_kernels else ("dense", "tiled")


def _problem(size: int, dim: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(size)
    features = torch.randn(size, dim, generator=random)
    labels = torch.randint(7, (size,), generator=random)
    return features.to(device), labels.to(device)


def _loss(features: Tensor, labels: Tensor, impl: Impl) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    loss = supcon_loss(features, labels, temperature=0.1, impl=impl)
    loss.backward()
    assert features.grad is not None
    return loss.detach().cpu(), features.grad.cpu()


def _supcon(device: torch.device, impl: Impl) -> None:
    for size, dim in SHAPES:
        features, labels = _problem(size, dim, "cpu")
        truth, gradient = _loss(features.double(), labels, "reference")
        honest, honest_gradient = _loss(features, labels, "reference")
        got, got_gradient = _loss(features.to(device), labels.to(device), impl)
        assert_within_budget(got, truth, honest)
        assert_gradient_within_budget(got_gradient, gradient, honest_gradient)


def _arm(device: torch.device) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 256, 6, 5, generator=random)
    torch.manual_seed(0)
    arm = ARM(256, (6, 5))
    arm(x)  # a training batch
    arm.eval()
    x_there = x.to(device)
    with torch.no_grad():
        truth, honest = arm.double()(x.double()), arm.float()(x)
        arm.to(device)
        for form in (arm, fold_arm(arm)):
            assert_within_budget(form(x_there).cpu(), truth, honest)
    worst = batch_invariance(arm, x_there).worst
    assert worst < 1e-5, f"predictions change by {worst:.1e} with their batch"


def _uerm(device: torch.device) -> None:
    labels = []
    for place in (torch.device("cpu"), device):
        random = torch.Generator().manual_seed(0)
        given = torch.randint(4, (400,), generator=random)
        logits = torch.randn(400, 4, generator=random)
        logits[torch.arange(400), torch.arange(400) % 4] += 3
        uerm = UERM(given, 4, warmup_epochs=0).to(place)
        uerm(logits.to(place), logits.to(place), torch.arange(400, device=place))
        uerm.end_epoch()
        labels.append(uerm.ledger.current_labels.cpu())
        uerm.ledger.revert(ids=torch.arange(400, device=place))
        assert torch.equal(uerm.ledger.current_labels.cpu(), given), (
            "revert: not the labels as given"
        )
    differing = int((labels[0] != labels[1]).sum())
    assert differing == 0, f"{differing} of 400 labels differ from those on the CPU"


def _check(name: str, attempt: Callable[[], None]) -> Check:
    try:
        attempt()
    except Exception as error:  # a driver or compiler can fail in any way
        return Check(name, f"{type(error).__name__}: {error}")
    return Check(name, "")


def _milliseconds(call: Callable[[], object]) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=SECONDS).median
