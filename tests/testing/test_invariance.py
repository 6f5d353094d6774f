"""`batch_invariance` passes modules that predict each sample by itself and catches the others."""

import math

import pytest
import torch
from torch import Tensor, nn

from unmuddle.arm import PublishedARM
from unmuddle.testing import batch_invariance


def trained(affinity: str) -> PublishedARM:
    torch.manual_seed(0)
    arm = PublishedARM(64, (4, 4), affinity=affinity)
    for _ in range(3):
        arm(torch.randn(16, 64, 4, 4) + torch.linspace(0, 1, 4))
    return arm


@pytest.mark.parametrize("affinity", ["running", "none"])
def test_arm_is_invariant(affinity: str) -> None:
    arm = trained(affinity)
    found = batch_invariance(arm, torch.randn(64, 64, 4, 4))
    assert found.worst < 1e-6
    assert arm.training


@pytest.mark.filterwarnings("ignore:PublishedARM")
def test_the_mean_of_the_test_batch_is_caught_by_every_check_but_the_order() -> None:
    found = batch_invariance(trained("batch"), torch.randn(64, 64, 4, 4))
    assert min(found.alone, found.size, found.mates) > 0.1 * found.scale
    assert found.order < 1e-5  # the same batch has the same mean


class LooksAtItsNeighbour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.roll(1, 0)


class CountsItsBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


def test_dependence_on_order_or_size_alone_is_caught() -> None:
    x = torch.randn(8, 3)
    assert batch_invariance(LooksAtItsNeighbour(), x).order > 0.01
    counts = batch_invariance(CountsItsBatch(), x)
    assert counts.order == counts.mates == 0
    assert min(counts.alone, counts.size) > 1


class Shifts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_a_model_that_works_in_place_is_judged_by_its_outputs() -> None:
    x = torch.randn(8, 3)
    before = x.clone()
    assert batch_invariance(Shifts(), x).worst == 0
    assert torch.equal(x, before)


class FailsInPairs(nn.Module):
    def __init__(self, result: float | None) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 2:
            return x
        if self.result is None:
            raise RuntimeError("refused")
        return x * self.result


def test_what_is_undefined_or_refused_never_passes() -> None:
    x = torch.randn(8, 3)
    assert math.isnan(batch_invariance(FailsInPairs(math.nan), x).worst)
    assert batch_invariance(FailsInPairs(None), x).worst == math.inf
    assert batch_invariance(nn.BatchNorm1d(3, track_running_stats=False), x).alone == math.inf


def test_wrong_input_is_named() -> None:
    with pytest.raises(TypeError, match="model: expected an nn.Module, got function"):
        batch_invariance(lambda x: x, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="x: expected at least 4 samples, got 3"):
        batch_invariance(nn.Identity(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"one output a sample, \(N, ...\) with N = 4, got \(8,\)"):
        batch_invariance(nn.Flatten(0), torch.zeros(4, 2))
