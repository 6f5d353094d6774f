"""What a step on a GPU launches and takes in memory, counted without one: the kernels do nothing."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.operators import Operators
from unmuddle import supcon_loss
from unmuddle.supcon import engine

pytest.importorskip("triton")
from unmuddle.supcon.backends.triton import large, pairs, rows

launched: list[str] = []


class Stub:
    """A kernel that only counts."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(size > 0 for size in grid)
        return lambda *_, **__: launched.append(self.name)


class PeakMemory(TorchDispatchMode):
    """Records the most bytes that tensors made inside took at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not function.is_view:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    launched.clear()
    for module in (large, pairs, rows):
        monkeypatch.setattr(module, "IS_INTERPRETED", False, raising=False)
        for name in vars(module):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Stub(name))
    with FakeTensorMode():
        yield


def batch(n: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.empty(n, dim, device="cuda:0", dtype=dtype, requires_grad=True)
    return x, torch.empty(n, device="cuda:0", dtype=torch.int64)


def step(x: Tensor, labels: Tensor, **options) -> None:
    """Forward and backward, without the engine, which asks for a device."""
    loss = supcon_loss(x, labels, **options)
    node: Any = loss.grad_fn
    if node.name() == "ToCopyBackward0":  # fp64 at sharp temperatures
        node = node.next_functions[0][0]
    with torch.no_grad():
        engine.Loss.backward(node, torch.ones_like(loss))


@pytest.mark.parametrize(
    ("n", "dim", "dtype", "kernels", "at_most"),
    [
        (64, 128, torch.float32, 0, 40),
        (2048, 768, torch.float32, 0, 40),
        (4096, 128, torch.float32, 5, 25),
        (65536, 768, torch.float32, 5, 25),
        (4096, 768, torch.bfloat16, 5, 25),
        (8192, 128, torch.bfloat16, 7, 45),
        (65536, 128, torch.float16, 7, 50),  # scales gradients that it cannot hold
    ],
)
def test_a_step_takes_few_operations_and_waits_for_nothing(
    n: int, dim: int, dtype: torch.dtype, kernels: int, at_most: int
) -> None:
    assert_few(n, dim, dtype, kernels, at_most)


OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "a temperature on the GPU": lambda n: {"temperature": torch.empty((), device="cuda:0")},
    "a trained temperature": lambda n: {
        "temperature": torch.empty((), device="cuda:0", requires_grad=True)
    },
    "a sharp temperature": lambda n: {"temperature": 0.02},
    "rows of any length": lambda n: {"normalize": False},
    "positives inside": lambda n: {"positives": "in"},
    "negatives": lambda n: {"denominator": "negatives"},
    "weights": lambda n: {"weight": torch.empty(n, device="cuda:0")},
    "weights of terms": lambda n: {"denominator_weight": torch.empty(n, device="cuda:0")},
    "keys": lambda n: {
        "keys": torch.empty(300, 128, device="cuda:0"),
        "key_labels": torch.empty(300, device="cuda:0", dtype=torch.int64),
    },
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "kernels", "at_most"), [(512, 0, 45), (4096, 5, 29)])
def test_no_option_takes_many_operations(option: str, n: int, kernels: int, at_most: int) -> None:
    assert_few(n, 128, torch.float32, kernels, at_most, **OPTIONS[option](n))


def assert_few(n: int, dim: int, dtype: torch.dtype, kernels: int, at_most: int, **options) -> None:
    x, labels = batch(n, dim, dtype)
    with Operators() as operators:
        step(x, labels, **options)
    called = operators.called
    assert len(launched) == kernels
    assert len(called) + len(launched) <= at_most, called
    waits = ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select")
    assert not [name for name in called if name.split("::")[1].split(".")[0] in waits]


@pytest.mark.parametrize(("dim", "megabytes"), [(128, 250), (768, 640)])
def test_a_large_step_takes_little_memory(dim: int, megabytes: int) -> None:
    x, labels = batch(65536, dim, torch.bfloat16)
    with PeakMemory() as memory:
        step(x, labels)
    assert memory.peak <= megabytes * 1e6
