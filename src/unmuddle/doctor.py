"""Report on a machine: its environment, agreement between devices and backends, and speed."""

import os
import platform
from collections.abc import Callable, Generator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from unmuddle.arm import ARM, fold_arm
from unmuddle.supcon import supcon_loss
from unmuddle.supcon.loss import HAS_TRITON, Impl, choose_impl
from unmuddle.testing import assert_gradient_within_budget, assert_within_budget
from unmuddle.uerm import UERM

PACKAGES = ("torch", "triton", "numpy", "timm", "torchvision", "accelerate", "onnxruntime")
SHAPES = ((5, 3), (130, 40), (1025, 128))  # N, D; ragged: N is not a multiple of a block size
LARGE_SHAPES = ((8200, 128), (8200, 300))  # in half precision
SIZES = (256, 1024, 4096)
SECONDS = 1.0  # minimum run time of a measurement


def environment() -> dict[str, str]:
    """Return versions, devices, and the backend that `impl="auto"` selects on each device."""
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


def checks() -> Generator[tuple[str, str]]:
    """Compare each backend on each device with fp64 on the CPU.

    Yield the name of each check and a description of its failure, which is empty if it passed.
    """
    for device in _devices():
        attempts: dict[str, Callable[[torch.device], None]] = {
            f"SupConLoss, {impl}": partial(_supcon, impl=impl) for impl in _backends(device)
        }
        if _is_cuda(device) and HAS_TRITON:
            attempts["SupConLoss, large and bf16"] = _large
        for name, attempt in (attempts | {"ARM, folded": _arm, "UERM": _uerm}).items():
            try:
                attempt(device)
                yield f"{name}, {device}", ""
            except Exception as error:  # noqa: PERF203  a driver or compiler can fail in any way
                yield f"{name}, {device}", f"{type(error).__name__}: {error}"


def speeds() -> Generator[tuple[str, float]]:
    """Yield the median time of a forward and backward pass, in milliseconds."""
    for device in _devices():
        for size in SIZES:
            features, labels = _problem(size, 128, device)
            losses = {"usual dense code": partial(dense_eager, temperature=0.1)}
            losses |= {impl: partial(_loss, impl=impl) for impl in _backends(device)}
            for of, loss in losses.items():
                name = f"SupConLoss, N = {size}, D = 128, {of}, {device}"
                yield name, _milliseconds(partial(_step, loss, features, labels))
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
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    return [torch.device("cpu"), *(torch.device(f"{kind}:{i}") for i in range(count))]


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


def _loss(features: Tensor, labels: Tensor, impl: Impl) -> Tensor:
    return supcon_loss(features, labels, temperature=0.1, impl=impl)


def dense_eager(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the loss of Eq. 2 in its usual eager implementation, with several N x N matrices."""
    z = nn.functional.normalize(features)
    logits = z @ z.T / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & others
    log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def _step(
    loss: Callable[[Tensor, Tensor], Tensor], features: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    features = features.detach().requires_grad_()
    value = loss(features, labels)
    return value.detach(), torch.autograd.grad(value, features)[0]


def _supcon(device: torch.device, impl: Impl) -> None:
    for size, dim in SHAPES:
        features, labels = _problem(size, dim, "cpu")
        reference, ours = partial(_loss, impl="reference"), partial(_loss, impl=impl)
        truth, gradient = _step(reference, features.double(), labels)
        honest, honest_gradient = _step(reference, features, labels)
        got, got_gradient = _step(ours, features.to(device), labels.to(device))
        assert_within_budget(got.cpu(), truth, honest)
        assert_gradient_within_budget(got_gradient.cpu(), gradient, honest_gradient)


def _large(device: torch.device) -> None:
    """Compare the kernels in half precision with tiles in fp32 on the same features."""
    for size, dim in LARGE_SHAPES:
        features, labels = _problem(size, dim, device)
        features = features.bfloat16()
        truth = _step(partial(_loss, impl="tiled"), features.float(), labels)
        got = _step(partial(_loss, impl="triton"), features, labels)
        for mine, true in zip(got, truth, strict=True):
            error = float((mine.float() - true).abs().max() / true.abs().max())
            assert error < 8 * torch.finfo(torch.bfloat16).eps, f"relative error {error:.1e}"


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
    differing = int((labels[0] != labels[1]).sum())
    assert differing == 0, f"{differing} of 400 labels differ from those on the CPU"


def _milliseconds(call: Callable[[], object]) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=SECONDS).median
