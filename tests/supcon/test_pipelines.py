"""The pipelines of the Triton kernels for the usual problem, in the interpreter or on a GPU."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers import thinned
from unmuddle import supcon_loss

pytest.importorskip("triton")
from unmuddle.supcon.backends import triton
from unmuddle.supcon.backends.triton import large, pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LABELS = {
    "some classes": lambda n: torch.randint(5, (n,)),
    "one class": lambda n: torch.full((n,), 2**63 - 1),
    "no positive": lambda n: torch.arange(n) - 2**63,
    "the largest label": lambda n: torch.where(
        torch.rand(n) < 0.4, -100, 2**63 - 1 - torch.arange(n) % 2
    ),
    "ignored rows": lambda n: torch.where(torch.rand(n) < 0.4, -100, torch.randint(4, (n,)) - 102),
}


@pytest.fixture(autouse=True)
def nan_memory():
    """Uninitialised memory is NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "LARGE", 0)


def results(x: Tensor, labels: Tensor, impl: str, weight: Tensor, **options) -> list[Tensor]:
    """Losses and the gradient of their weighted sum, in fp64."""
    x = x.detach().clone().requires_grad_()
    losses = supcon_loss(x, labels, impl=impl, reduction="none", **options)
    losses.backward(weight.to(losses))
    return [losses.detach().double().cpu(), x.grad.double().cpu()]


def check(n: int, dim: int, kind: str, dtype: torch.dtype, roundings: int = 8, **options) -> None:
    """Agreement with fp64 up to a number of rounding errors, and equal bits of two runs."""
    torch.manual_seed(n)
    x, labels, weight = torch.randn(n, dim).to(dtype), LABELS[kind](n), torch.rand(n)
    x[n // 2] = 0
    truth = results(x.double(), labels, "reference", weight, **options)
    there = x.to(DEVICE), labels.to(DEVICE)
    got, again = (results(*there, "triton", weight, **options) for _ in range(2))
    eps = max(torch.finfo(dtype).eps, 3e-7)
    for mine, same, true in zip(got, again, truth, strict=True):
        assert torch.equal(mine, same)
        assert (mine - true).abs().max() <= roundings * eps * (true.abs().max() + 1e-3)


SIZES = (
    (2, 1, torch.float32),
    (33, 17, torch.float32),
    (64, 64, torch.float32),
    (130, 150, torch.float32),
    (70, 33, torch.bfloat16),
    (129, 64, torch.float16),
)


@pytest.mark.parametrize(("size", "kind"), thinned(itertools.product(SIZES, LABELS), 7))
def test_pairs_agree_with_fp64(size: tuple[int, int, torch.dtype], kind: str) -> None:
    n, dim, dtype = size
    check(n, dim, kind, dtype, temperature=0.1)


def test_rows_of_any_length_agree_with_fp64() -> None:
    # A logit s that is rounded changes its probability by the factor 1 + eps s; s is up to 102.
    options = {"temperature": 0.3, "normalize": False}
    check(70, 33, "some classes", torch.float32, roundings=102, **options)


LARGE = ((2, 3), (128, 16), (129, 100), (300, 40), (500, 150))


@pytest.mark.parametrize(("size", "kind"), thinned(itertools.product(LARGE, LABELS), 6))
@pytest.mark.usefixtures("is_large")
def test_large_batches_agree_with_fp64(size: tuple[int, int], kind: str) -> None:
    check(*size, kind, torch.float16, temperature=0.1)


@pytest.mark.parametrize(("n", "kind"), thinned(itertools.product([200, 300, 600], LABELS), 9))
@pytest.mark.usefixtures("is_large")
def test_long_rows_agree_with_fp64(n: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "PANEL", 256)
    check(n, 300, kind, torch.float16, temperature=0.1)


@pytest.mark.usefixtures("is_large")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_in_gives_nan_out(dtype: torch.dtype) -> None:
    x = torch.randn(140, 8, dtype=dtype, device=DEVICE)
    x[3, 5] = torch.nan
    assert supcon_loss(x, torch.arange(140, device=DEVICE) % 3, impl="triton").isnan()


def test_views_without_labels_ignore_no_sample() -> None:
    x = torch.randn(6, 2, 4)
    expected = supcon_loss(x, impl="reference", ignore_index=3)
    torch.testing.assert_close(supcon_loss(x.to(DEVICE), impl="triton", ignore_index=3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("is_large")
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    x = torch.randn(8, 140, dtype=dtype, device=DEVICE).T
    labels = (torch.arange(280, device=DEVICE) % 3)[::2]
    packed = results(x.contiguous(), labels.contiguous(), "triton", torch.ones(140))
    for mine, expected in zip(results(x, labels, "triton", torch.ones(140)), packed, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize(
    ("expected", "dtype", "options"),
    [
        (pairs, torch.float32, {}),
        (pairs, torch.bfloat16, {"temperature": 1 / 40}),
        (large, torch.bfloat16, {"n": triton.LARGE}),
        (pairs, torch.float32, {"n": triton.LARGE}),
        (large, torch.float16, {"n": triton.LARGEST}),
        (pairs, torch.float16, {"n": triton.LARGEST + 1}),
        (pairs, torch.float64, {}),
        (pairs, torch.float32, {"temperature": 1 / 42}),
        (pairs, torch.float32, {"temperature": torch.tensor(0.1)}),
        (pairs, torch.float32, {"normalize": False}),
        (pairs, torch.float32, {"positives": "in"}),
        (pairs, torch.float32, {"denominator": "negatives"}),
        (pairs, torch.float32, {"denominator_weight": torch.ones(8)}),
        (pairs, torch.float32, {"labels": torch.ones(8, 3)}),
        (pairs, torch.float32, {"keys": torch.ones(2, 2), "key_labels": torch.ones(2).long()}),
    ],
)  # fmt: skip
def test_who_takes_what(
    expected, dtype: torch.dtype, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("found")

    monkeypatch.setattr(expected, "forward", stop)
    options = dict(options)
    n = options.pop("n", 8)
    labels = options.pop("labels", torch.arange(n) % 2)
    x = torch.empty(n, 2, dtype=dtype, device=DEVICE)
    options = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    with pytest.raises(RuntimeError, match="found"):
        supcon_loss(x, labels.to(DEVICE), impl="triton", **options)
