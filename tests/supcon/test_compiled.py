"""`torch.compile`, `torch.func` and the operators."""

import pytest
import torch
from torch import Tensor

from unmuddle import supcon_loss
from unmuddle.supcon import valid_anchors
from unmuddle.supcon.operators import supcon, supcon_backward
from unmuddle.supcon.problem import Options

CASES = {
    "default": {},
    "in, negatives": {"positives": "in", "denominator": "negatives"},
    "each": {"reduction": "none"},
    "reference": {"impl": "reference"},
    "views": {"labels": None},
    "sharp": {"temperature": 0.01},
}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def value_and_gradient(loss, features: Tensor) -> tuple[Tensor, Tensor]:
    x = features.clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("n", [12, 600])
@pytest.mark.parametrize("case", CASES)
def test_one_graph_gives_what_eager_gives(case: str, n: int) -> None:
    features, arguments = torch.randn(n, 2, 8), {"labels": torch.arange(n) % 3} | CASES[case]

    def loss(x: Tensor) -> Tensor:
        return supcon_loss(x, **arguments)

    compiled = torch.compile(loss, fullgraph=True)
    for got, expected in zip(
        value_and_gradient(compiled, features), value_and_gradient(loss, features), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_features_laid_out_by_columns_compile() -> None:
    features, labels = torch.randn(8, 24).T, torch.arange(24) % 3

    def loss(x: Tensor) -> Tensor:
        return supcon_loss(x, labels)

    compiled = torch.compile(loss, fullgraph=True)
    for got, expected in zip(
        value_and_gradient(compiled, features), value_and_gradient(loss, features), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_one_dynamic_graph_serves_every_batch_size() -> None:
    compilations = 0

    def backend(graph, inputs):
        nonlocal compilations
        compilations += 1
        return graph

    compiled = torch.compile(supcon_loss, fullgraph=True, dynamic=True, backend=backend)
    for n in (5, 20, 33, 450):
        features, labels = torch.randn(n, 4), torch.arange(n) % 3
        torch.testing.assert_close(compiled(features, labels), supcon_loss(features, labels))
    assert compilations == 1


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_temperature_is_trained() -> None:
    features, labels = torch.randn(9, 4), torch.arange(9) % 3
    gradients = []
    for loss in (supcon_loss, torch.compile(supcon_loss, fullgraph=True)):
        tau = torch.tensor(0.2, requires_grad=True)
        gradients += torch.autograd.grad(loss(features, labels, temperature=tau), tau)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n", [12, 600])
@pytest.mark.parametrize("case", CASES)
def test_functional_gradient_is_the_gradient(case: str, n: int) -> None:
    features, arguments = torch.randn(n, 2, 8), {"labels": torch.arange(n) % 3} | CASES[case]

    def loss(x: Tensor) -> Tensor:
        return supcon_loss(x, **arguments).sum()

    expected = value_and_gradient(loss, features)[1]
    torch.testing.assert_close(torch.func.grad(loss)(features), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own
@pytest.mark.parametrize("n", [12, 600])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("supervision", ["int", "soft", "mask"])
def test_operators_are_what_they_declare(supervision: str, normalize: bool, n: int) -> None:
    x, inv_temperature = torch.randn(n, 4), torch.tensor(5.0)
    labels = {"int": torch.arange(n) % 3, "soft": torch.rand(n, 3), "mask": None}[supervision]
    mask = torch.rand(n, n) if supervision == "mask" else None
    included = None if supervision == "mask" else torch.arange(n) % 4 > 0
    options = Options(
        n,
        0,
        n,
        False,
        normalize,
        "out",
        "all",
        product_dtype=torch.float32,
        impl="tiled",
        one_tile=n == 12,
        keep=True,
    )
    tensors = (x.requires_grad_(), labels, mask, included, inv_temperature.requires_grad_())
    torch.library.opcheck(supcon, (*tensors, False, *options))
    with torch.no_grad():
        _, has_loss, lse, norm, coefficients = supcon(*tensors, False, *options)
    saved = (torch.rand(n), has_loss, lse, norm, coefficients)
    tensors = tuple(None if t is None else t.detach() for t in tensors)
    torch.library.opcheck(supcon_backward, (*saved, *tensors, False, True, *options))


def test_valid_anchors_compile_without_a_graph_break() -> None:
    compiled = torch.compile(valid_anchors, fullgraph=True, backend="eager")
    x, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, -100])
    assert torch.equal(compiled(x, labels), valid_anchors(x, labels))
