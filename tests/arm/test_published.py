"""ARM's steps against plain loops, and what the module promises."""

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from tests.helpers.operators import Operators
from unmuddle.arm import (
    PublishedARM,
    affinity,
    amend,
    arrange,
    choose_upscale,
    de_albino,
    output_size,
)
from unmuddle.testing import assert_within_budget


def convolve_each_channel(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The published form: one convolution a channel, all with the same kernel."""
    channels = [
        conv2d(x[:, c : c + 1], weight[None, None], stride=stride) for c in range(x.shape[1])
    ]
    return torch.cat(channels, 1)


@given(
    n=st.integers(0, 3),
    maps=st.integers(1, 3),
    upscale=st.sampled_from([2, 4, 8]),
    size=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_amend_is_a_convolution_of_every_arranged_channel(
    n: int, maps: int, upscale: int, size: tuple[int, int], channels_last: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    r, k = upscale, 2 * upscale
    x = torch.randn(n, maps * r**2, *size, generator=g, dtype=torch.float64)
    weight = torch.randn(k, k, generator=g, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = convolve_each_channel(arrange(x, r), weight, r // 2)
    for got in (amend(x, weight, r), de_albino(arrange(x, r), weight, r // 2)):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("channels_last", [False, True])
def test_amend_value_and_gradients_within_the_fp64_budget(channels_last: bool) -> None:
    base = torch.randn(8, 512, 7, 7), torch.randn(32, 32) / 32
    if channels_last:
        base = base[0].to(memory_format=torch.channels_last), base[1]

    def in_steps(x: Tensor, weight: Tensor) -> Tensor:
        return convolve_each_channel(arrange(x, 16), weight, 8)

    def results(step, dtype: torch.dtype) -> list[Tensor]:
        x, weight = (value.to(dtype).requires_grad_() for value in base)
        value = step(x, weight)
        return [value.detach(), *torch.autograd.grad(value.square().sum(), (x, weight))]

    truth, honest = results(in_steps, torch.float64), results(in_steps, torch.float32)
    ours = results(lambda x, weight: amend(x, weight, 16), torch.float32)
    for got, true, same_type in zip(ours, truth, honest, strict=True):
        assert_within_budget(got, true, same_type)


def test_a_corner_is_visited_once_and_the_centre_sixteen_times() -> None:
    x = torch.zeros(1, 1, 112, 112, requires_grad=True)
    (visits,) = torch.autograd.grad(de_albino(x, torch.ones(32, 32), 8).sum(), x)
    assert visits[0, 0, 0, 0] == visits[0, 0, -1, -1] == 1
    assert visits[0, 0, 24:88, 24:88].unique().tolist() == [16]


def test_arrange_lays_channels_out_as_pixels() -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1)
    expected = torch.tensor([[[[0.0, 1], [2, 3]], [[4, 5], [6, 7]]]])
    assert torch.equal(arrange(x, 2), expected)


def test_affinity_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[:, :, None, None]  # sample means 2 and 6
    own = affinity(x, torch.tensor(0.5)).flatten()
    given = affinity(x, torch.tensor(0.5), torch.tensor([[10.0]])).flatten()
    assert own.tolist() == [4.0, 8.0]
    assert given.tolist() == [7.0, 11.0]


@pytest.mark.parametrize(
    ("channels", "size", "features"),
    [(512, (7, 7), 121), (512, 7, 121), (1280, (7, 7), 121), (440, (5, 9), 105), (12, (2, 2), 1),
     (2048, (3, 4), 15), (4, (6, 2), 9), (1, (3, 3), 9), (511, (4, 4), 25)],
)  # fmt: skip
def test_any_map_fits(channels: int, size: int | tuple[int, int], features: int) -> None:
    arm = PublishedARM(channels, size)
    height, width = arm.input_size
    out = arm(torch.randn(3, channels, height, width))
    assert out.shape == (3, features) == (3, arm.out_features)
    out.sum().backward()
    assert all(p.grad is not None for p in arm.parameters())


def test_paper_sizes() -> None:
    arm = PublishedARM(512, (7, 7))
    assert arm.upscale == 16
    assert arm.weight.shape == (32, 32)
    assert arm.bn.num_features == 2
    assert arm.alpha.item() == 1
    assert output_size(7, 7) == (11, 11)


@pytest.mark.parametrize(
    ("channels", "upscale"), [(256, 16), (512, 16), (320, 8), (48, 4), (440, 2), (7, 2)]
)
def test_choose_upscale_takes_the_largest_that_divides(channels: int, upscale: int) -> None:
    assert choose_upscale(channels) == upscale


def test_training_output_is_the_paper_formula() -> None:
    arm = PublishedARM(64, (3, 4)).double()
    x = torch.randn(5, 64, 3, 4, dtype=torch.float64)
    maps = convolve_each_channel(torch.pixel_shuffle(x, 8), arm.weight, 4)
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, correction=0)
    maps = (maps - mean) / (var + arm.bn.eps).sqrt()
    expected = maps.mean(1) + maps.mean((0, 1))
    torch.testing.assert_close(arm(x), expected.flatten(1))


@pytest.mark.parametrize("affinity", ["running", "none"])
def test_eval_output_of_a_sample_is_the_same_whatever_its_batch(affinity: str) -> None:
    arm = _trained(affinity)
    x = torch.randn(64, 64, 4, 4) + torch.linspace(-3, 3, 64)[:, None, None, None]
    with torch.no_grad():
        alone = torch.cat([arm(row[None]) for row in x])
        together = arm(x)
        order = torch.randperm(64)
        shuffled = torch.empty_like(together)
        shuffled[order] = arm(x[order])
    # How a product is cut up, and so the order of its sums, depends on its size and on the place of
    # a sample in the batch: a rounding, no more.
    torch.testing.assert_close(shuffled, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_batch_affinity_depends_on_batch_mates_and_says_so() -> None:
    arm = _trained("batch")
    x = torch.randn(8, 64, 4, 4)
    x[4:] += 5
    with torch.no_grad(), pytest.warns(UserWarning, match="depend on the other samples"):
        mixed, alone = arm(x)[:1], arm(x[:1])
    assert (mixed - alone).abs().max() > 1e-3


def test_running_mean_follows_training_batches() -> None:
    arm = PublishedARM(64, (4, 4), momentum=1.0)
    x = torch.randn(6, 64, 4, 4)
    trained = arm(x)
    common = arm.running_common
    own = trained.view(6, 5, 5) - common
    torch.testing.assert_close(own.mean(0), common, rtol=1e-4, atol=1e-5)
    before = common.clone()
    arm.eval()(x)
    assert torch.equal(arm.running_common, before)


def test_an_empty_training_batch_leaves_the_running_mean_alone() -> None:
    arm = PublishedARM(64, (4, 4))
    arm.bn.eval()  # whose statistics do not take an empty batch
    arm(torch.zeros(0, 64, 4, 4))
    assert arm.running_common.isfinite().all()


def test_state_dict_round_trip_keeps_eval_outputs() -> None:
    first, second = _trained("running"), PublishedARM(64, (4, 4)).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(first(x), second(x))


def test_gradcheck() -> None:
    arm = PublishedARM(16, (2, 3)).double()
    x = torch.randn(3, 16, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in arm.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(arm, dict(zip(names, parameters, strict=True)), (x,))

    arm.affinity = "batch"  # running_common must not move between gradcheck's calls
    assert torch.autograd.gradcheck(call, (x, *arm.parameters()))


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_takes_few_operators(training: bool) -> None:
    arm = PublishedARM(512, (7, 7)).train(training)
    x = torch.randn(4, 512, 7, 7)
    arm(x)
    with Operators() as operators:
        arm(x)
    assert len(operators.called) <= 15, operators.called


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affinity", ["running", "none"])
def test_compiles_to_one_graph(affinity: str, training: bool) -> None:
    torch.compiler.reset()
    arm = PublishedARM(16, (3, 4), affinity=affinity).train(training)
    same = copy.deepcopy(arm)
    compiled = torch.compile(arm, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(4, 16, 3, 4)
        torch.testing.assert_close(compiled(x), same(x))
    torch.testing.assert_close(arm.running_common, same.running_common)


def test_checkpointing_gives_the_same_gradients() -> None:
    arm = PublishedARM(16, (3, 4))
    x = torch.randn(4, 16, 3, 4)

    def gradients(call) -> list[Tensor]:
        return list(torch.autograd.grad(call(x).square().sum(), list(arm.parameters())))

    plain = gradients(arm)
    saved = gradients(lambda x: checkpoint(arm, x, use_reentrant=False))
    for got, expected in zip(saved, plain, strict=True):
        torch.testing.assert_close(got, expected)


def test_state_dict_keys_are_stable() -> None:
    keys = {"weight", "alpha", "running_common"}
    keys |= {f"bn.{k}" for k in ("weight", "bias", "running_mean", "running_var")}
    keys |= {"bn.num_batches_tracked"}
    assert set(PublishedARM(64, (4, 4)).state_dict()) == keys
    assert set(PublishedARM(63, (4, 4)).state_dict()) == keys | {"project.weight"}


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"input_size: expected at least \(2, 2\), got \(1, 7\)", {"input_size": (1, 7)}),
        (
            r"input_size: expected a whole number or \(H, W\), got \(4, 4, 4\)",
            {"input_size": (4, 4, 4)},
        ),
        (r"input_size: expected a whole number or \(H, W\), got 4.5", {"input_size": 4.5}),
        (r"in_channels: expected a whole number of at least 1, got 0", {"in_channels": 0}),
        (r"in_channels: expected a whole number of at least 1, got '64'", {"in_channels": "64"}),
        (r"affinity: expected one of .* got 'mean'", {"affinity": "mean"}),
        (r"momentum: expected a number from 0 to 1, got 5", {"momentum": 5}),
        (r"upscale: expected an even number >= 2 or 'auto', got 3", {"upscale": 3}),
    ],
)
def test_wrong_options_are_named(message: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match=message):
        PublishedARM(**({"in_channels": 64, "input_size": (4, 4)} | arguments))


def test_wrong_input_is_named() -> None:
    for shape in ((2, 64, 4, 5), (2, 64, 4, 3), (2, 64, 3, 4), (2, 32, 4, 4), (2, 64, 4)):
        got = re.escape(str(shape))
        with pytest.raises(ValueError, match=rf"\(N, 64, 4, 4\), got {got}"):
            PublishedARM(64, (4, 4))(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"H, W >= 32, the kernel size, got \(1, 2, 31, 112\)"):
        de_albino(torch.zeros(1, 2, 31, 112), torch.zeros(32, 32), 8)
    with pytest.raises(ValueError, match=r"weight: expected shape \(k, k\), got \(30, 32\)"):
        de_albino(torch.zeros(1, 2, 40, 40), torch.zeros(30, 32), 8)
    with pytest.raises(ValueError, match=r"weight: expected shape \(2r, 2r\) = \(8, 8\), got"):
        amend(torch.zeros(1, 16, 2, 2), torch.zeros(2, 2), 4)
    with pytest.raises(ValueError, match=r"multiple of upscale² = 4, got \(1, 6, 2, 2\)"):
        arrange(torch.zeros(1, 6, 2, 2), 2)
    for shape in ((1, 4, 2, 2, 2), (1, 4, 2)):
        got = re.escape(str(shape))
        with pytest.raises(ValueError, match=rf"shape \(N, C, H, W\) .*, got {got}"):
            arrange(torch.zeros(shape), 2)


def _trained(affinity: str) -> PublishedARM:
    arm = PublishedARM(64, (4, 4), affinity=affinity)
    for _ in range(3):
        arm(torch.randn(16, 64, 4, 4) + torch.linspace(0, 1, 4))
    return arm.eval()
