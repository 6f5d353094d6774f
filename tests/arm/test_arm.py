"""ARM against plain loops, and what the module promises."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, interpolate

from tests.helpers.operators import Operators
from tests.helpers.trained_arm import trained
from unmuddle import ARM, supcon_loss
from unmuddle.arm import PublishedARM, weigh_positions
from unmuddle.testing import assert_within_budget, batch_invariance


@given(
    n=st.integers(0, 3),
    channels=st.integers(1, 5),
    maps=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_positions_are_summed_with_their_weights(
    n: int, channels: int, maps: int, size: tuple[int, int], channels_last: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, *size, generator=g, dtype=torch.float64)
    weight = torch.randn(maps, *size, generator=g, dtype=torch.float64)
    expected = torch.zeros(n, channels, maps, dtype=torch.float64)
    for k in range(maps):
        expected[:, :, k] = (weight[k] * x).sum((2, 3)) / math.sqrt(math.prod(size))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(weigh_positions(x, weight), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (14, 14)])
def test_training_starts_close_to_average_pooling(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    arm, x = ARM(16, (7, 7), maps=3).double(), torch.rand(8, 16, *size).double()
    average = batch_norm(adaptive_avg_pool2d(x, 1).flatten(1), None, None, training=True)
    first, *others = arm(x).unflatten(1, (16, 3)).unbind(2)
    torch.testing.assert_close(first, average)
    for other in others:
        assert 0 < (other - average).norm() < 0.2 * average.norm()


def test_a_map_of_another_size_is_weighed_by_interpolated_weights() -> None:
    x, weight = torch.randn(2, 4, 6, 3), torch.randn(2, 7, 7)
    scaled = interpolate(weight[None], (6, 3), mode="bilinear")[0]
    expected = torch.einsum("nchw,khw->nck", x, scaled) * 7 / 18
    torch.testing.assert_close(weigh_positions(x, weight), expected)


@pytest.mark.parametrize(
    ("channels", "size", "maps"), [(512, 7, 2), (3, (2, 5), 1), (1, (4, 4), 8)]
)
def test_any_map_fits(channels: int, size: int | tuple[int, int], maps: int) -> None:
    arm = ARM(channels, size, maps=maps)
    out = arm(torch.randn(3, channels, *arm.input_size))
    assert out.shape == (3, channels * maps) == (3, arm.out_features)
    out.square().sum().backward()
    assert all(p.grad is not None for p in arm.parameters())


def test_maps_become_different_though_nothing_follows() -> None:
    arm, x = ARM(8, (3, 3)), torch.randn(16, 8, 3, 3)
    optimizer = torch.optim.Adam(arm.parameters(), 0.05)

    def distance() -> float:
        return float((arm.weight[0] - arm.weight[1]).detach().norm())

    before = distance()
    for _ in range(50):
        optimizer.zero_grad()
        supcon_loss(arm(x), torch.arange(16) % 4).backward()
        optimizer.step()
    assert distance() > 3 * before


def test_an_image_size_in_place_of_the_maps_is_refused() -> None:
    for size, shape in ((224, (8, 8)), (4, (17, 4)), (2, (1, 1))):
        with pytest.raises(
            ValueError, match=r"up to 4 times .*; ARM's input_size is that of the map"
        ):
            ARM(3, size)(torch.zeros(2, 3, *shape))
    with pytest.raises(TypeError, match="x: expected a tensor, got <class 'list'>"):
        ARM(3, 4)([1])


def test_gradcheck() -> None:
    arm = ARM(4, (2, 3)).double().eval()
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for leaf in (x, last):
        assert torch.autograd.gradcheck(
            lambda x, w: weigh_positions(x, w), (leaf, arm.weight.detach().requires_grad_())
        )


def test_eval_output_of_a_sample_is_the_same_whatever_its_batch() -> None:
    assert batch_invariance(trained(ARM, 64, (4, 4)), torch.randn(64, 64, 4, 4)).worst < 1e-6


def test_values_within_the_fp64_budget() -> None:
    arm = trained(ARM, 512, (7, 7))
    x = torch.randn(8, 512, 7, 7)
    with torch.no_grad():
        truth = copy.deepcopy(arm).double()(x.double())
        plain = torch.einsum("nchw,khw->nck", x, arm.weight / 7).flatten(1)
        assert_within_budget(arm(x), truth, arm.bn(plain))


@pytest.mark.parametrize("make", [ARM, PublishedARM])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_channels_last(make, dtype: torch.dtype) -> None:
    arm = trained(make, 64, (4, 4))
    x = torch.randn(2, 64, 4, 4)
    expected = arm(x)
    torch.testing.assert_close(arm(x.to(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(arm(x).float(), expected, rtol=0.1, atol=0.1)
    half = copy.deepcopy(arm).to(dtype)
    got = half(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_training_forward_launches_four_operations(channels_last: bool) -> None:
    with FakeTensorMode(), torch.device("cuda:0"):
        arm, x = ARM(512, (7, 7)), torch.empty(64, 512, 7, 7)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        with Operators() as operators:
            arm(x)
    launched = [name for name in operators.called if "empty" not in name]  # which only allocates
    assert len(launched) <= 4, launched


@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(training: bool) -> None:
    torch.compiler.reset()
    arm = ARM(16, (3, 4)).train(training)
    same = copy.deepcopy(arm)
    compiled = torch.compile(arm, fullgraph=True, backend="aot_eager")
    for size in ((3, 4), (3, 4), (6, 5)):
        x = torch.randn(4, 16, *size)
        torch.testing.assert_close(compiled(x), same(x))
    torch.testing.assert_close(arm.state_dict(), same.state_dict())


@pytest.mark.parametrize("make", [ARM, PublishedARM])
def test_exports(make) -> None:
    arm = trained(make, 64, (4, 4))
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(arm, (torch.randn(3, 64, 4, 4),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 64, 4, 4)
    torch.testing.assert_close(program.module()(x), arm(x))


def test_state_dict_keys_are_stable_and_keep_eval_outputs() -> None:
    first, second = trained(ARM, 64, (4, 4)), ARM(64, (4, 4)).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(first(x), second(x))
    of_bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {*first.state_dict()} == {"weight", *(f"bn.{name}" for name in of_bn)}


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"input_size: expected at least \(2, 2\), got \(1, 7\)", {"input_size": (1, 7)}),
        (r"input_size: expected a whole number or \(H, W\), got 4.5", {"input_size": 4.5}),
        (r"in_channels: expected a whole number of at least 1, got 0", {"in_channels": 0}),
        (r"maps: expected a whole number of at least 1, got 0", {"maps": 0}),
        (r"maps: expected a whole number of at least 1, got 1.5", {"maps": 1.5}),
        (r"maps: expected a whole number of at least 1, got True", {"maps": True}),
    ],
)
def test_wrong_options_are_named(message: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match=message):
        ARM(**({"in_channels": 64, "input_size": (4, 4)} | arguments))


def test_wrong_input_is_named() -> None:
    arm = ARM(64, (4, 4))
    for shape in ((2, 32, 4, 4), (2, 64)):
        x: Tensor = torch.zeros(shape)
        expected = rf"\(N, 64, H, W\), got \({', '.join(map(str, shape))}\)"
        with pytest.raises(ValueError, match=expected):
            arm(x)
