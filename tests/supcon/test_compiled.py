"""`torch.compile`, `torch.func` and the operators."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests.helpers import thinned
from unmuddle import supcon_loss
from unmuddle.supcon import valid_anchors
from unmuddle.supcon.operators import supcon, supcon_backward
from unmuddle.supcon.problem import ContrastSet, Options

CASES = {
    "default": {},
    "in, negatives": {"positives": "in", "denominator": "negatives"},
    "each": {"reduction": "none"},
    "reference": {"impl": "reference"},
    "views": {"labels": None},
    "sharp": {"temperature": 0.01},
    "in": {"positives": "in"},
    "negatives": {"denominator": "negatives"},
    "soft": {"labels": "soft"},
    "mask": {"labels": None, "mask": "mask"},
    "keys": {"keys": "keys", "key_labels": "key_labels"},
    "weights": {"weight": "weight", "denominator_weight": "weight", "no_positive": "zero"},
    "ignored": {"labels": "ignored"},
}


TENSORS = ("labels", "mask", "keys", "key_labels", "weight", "denominator_weight")


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def value_and_gradient(loss, features: Tensor) -> tuple[Tensor, Tensor]:
    x = features.clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value.mean(), x)[0]


def check_one_graph(loss, features: Tensor) -> None:
    """A loss compiles to one graph, which gives the value and the gradient of eager mode."""
    compiled = value_and_gradient(torch.compile(loss, fullgraph=True), features)
    for got, expected in zip(compiled, value_and_gradient(loss, features), strict=True):
        # Inductor rounds in another order; derivatives of a loss at τ = 0.07 are up to 14.
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def draw_case(case: str, n: int) -> tuple[Tensor, dict[str, Any]]:
    """Draw two views of n samples, and the arguments of a case."""
    g, labels = torch.Generator().manual_seed(n), torch.arange(n) % 3
    tensors = {
        "soft": torch.rand(n, 3, generator=g),
        "mask": torch.rand(n, n, generator=g),
        "keys": torch.randn(20, 8, generator=g),
        "key_labels": torch.arange(20) % 4,
        "weight": torch.rand(n, generator=g),
        "ignored": torch.where(torch.arange(n) % 5 == 0, -100, labels),
    }
    arguments = {"labels": labels} | CASES[case]
    for name, value in arguments.items():
        if name in TENSORS and isinstance(value, str):
            arguments[name] = tensors[value]
    return torch.randn(n, 2, 8, generator=g), arguments


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(("n", "case"), thinned(itertools.product([12, 600], CASES), 4))
def test_one_graph_gives_what_eager_gives(case: str, n: int) -> None:
    features, arguments = draw_case(case, n)

    def loss(x: Tensor) -> Tensor:
        return supcon_loss(x, **arguments)

    check_one_graph(loss, features)


@pytest.mark.filterwarnings("ignore")
def test_features_laid_out_by_columns_compile() -> None:
    features, labels = torch.randn(8, 24).T, torch.arange(24) % 3

    def loss(x: Tensor) -> Tensor:
        return supcon_loss(x, labels)

    check_one_graph(loss, features)


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
def test_functional_gradient_is_that_of_the_reference(case: str, n: int) -> None:
    features, arguments = draw_case(case, n)

    def loss(x: Tensor, **options) -> Tensor:
        return supcon_loss(x, **arguments | options).mean()

    expected = value_and_gradient(partial(loss, impl="reference"), features)[1]
    torch.testing.assert_close(torch.func.grad(loss)(features), expected, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch.func's own
def test_functional_transforms_nest() -> None:
    features, labels = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2

    def loss(x: Tensor) -> Tensor:
        return supcon_loss(x, labels, temperature=0.5)

    hessian = torch.func.hessian(loss)(features).flatten(0, 1).flatten(1)
    expected = torch.autograd.functional.hessian(loss, features).flatten(0, 1).flatten(1)
    torch.testing.assert_close(hessian, expected)
    assert hessian.any()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("supervision", ["int", "soft", "mask"])
def test_operators_are_what_they_declare(supervision: str, normalize: bool) -> None:
    n = 12
    x, inv_temperature = torch.randn(n, 4), torch.tensor(5.0)
    labels = {"int": torch.arange(n) % 3, "soft": torch.rand(n, 3), "mask": None}[supervision]
    mask = torch.rand(n, n) if supervision == "mask" else None
    included = None if supervision == "mask" else torch.arange(n) % 4 > 0
    weight = None if supervision == "int" else torch.rand(n)
    options = Options(
        anchors=n,
        normalize=normalize,
        is_bounded=False,
        ignore_index=-100,
        dtype=torch.float32,
        positives="out",
        denominator="all",
        product_dtype=torch.float32,
        impl="tiled",
        needs_grad=True,
        keys_need_grad=False,
        temperature_needs_grad=True,
    )
    contrast = (x.requires_grad_(), labels, mask, included, weight)
    tensors = (*contrast, inv_temperature.requires_grad_())
    torch.library.opcheck(supcon, (*tensors, *options))
    with torch.no_grad():
        saved = supcon(*tensors, *options)[2:]
    tensors = tuple(None if t is None else t.detach() for t in tensors)
    torch.library.opcheck(supcon_backward, (torch.rand(n), *saved, *tensors, *options))


def test_operators_take_the_fields_of_their_records_in_order() -> None:
    fields = [*ContrastSet._fields, *Options._fields]
    for name, first in (("supcon", 0), ("supcon_backward", 5)):
        schema = getattr(torch.ops.unmuddle, name).default._schema
        assert [argument.name for argument in schema.arguments][first:] == fields


@pytest.mark.parametrize("n", [64, 700])
def test_a_schedule_of_temperatures_compiles_twice(n: int) -> None:
    counter = CompileCounter()
    compiled = torch.compile(
        lambda x, t: supcon_loss(x, torch.arange(n) % 3, temperature=t), backend=counter
    )
    for temperature in (0.1, 0.09, 0.08, 0.07):
        compiled(torch.randn(n, 4, requires_grad=True), temperature).backward()
    assert counter.frame_count <= 2  # for a number, then for any


def test_valid_anchors_compile_without_a_graph_break() -> None:
    compiled = torch.compile(valid_anchors, fullgraph=True, backend="eager")
    x, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, -100])
    assert torch.equal(compiled(x, labels), valid_anchors(x, labels))
