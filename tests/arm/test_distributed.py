"""ARM in two processes with synchronised batch normalisation: what one process computes.

`torch`'s `SyncBatchNorm` and its `DistributedDataParallel` refuse that on CPUs, so a normalisation
over the joined batch and averaged gradients stand in for them; what ARM itself has to join, the mean of what faces have in common, is ARM's own code.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from tests.helpers.processes import run
from unmuddle import ARM
from unmuddle.arm import PublishedARM


class JoinedBatchNorm(nn.SyncBatchNorm):
    """`SyncBatchNorm` for equal batches on CPUs: normalises the joined batch, returns our part."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps
            )
        self.num_batches_tracked += 1
        joined = nn.functional.batch_norm(
            torch.cat(all_gather(x)), self.running_mean, self.running_var, self.weight, self.bias,
            True, self.momentum, self.eps,
        )  # fmt: skip
        return joined.chunk(dist.get_world_size())[dist.get_rank()]


def network(make: type[ARM | PublishedARM]) -> nn.Sequential:
    torch.manual_seed(0)
    arm = make(16, (4, 4))
    classifier = nn.Linear(arm.out_features, 3)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), arm, classifier).double()


def synchronised(model: nn.Sequential) -> nn.Sequential:
    """As `nn.SyncBatchNorm.convert_sync_batchnorm` does it, to the class that runs on CPUs."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[1].bn) is nn.SyncBatchNorm
    model[1].bn.__class__ = JoinedBatchNorm
    return model


def average_gradients(model: nn.Module) -> None:
    """As `DistributedDataParallel` does it, which refuses `SyncBatchNorm` on CPUs."""
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def _training_is_that_of_one_process(
    sizes: tuple[int, ...], make: type[ARM | PublishedARM]
) -> None:
    g = torch.Generator().manual_seed(0)
    batches = torch.randn(3, sum(sizes), 3, 8, 8, generator=g, dtype=torch.float64)
    alone = network(make)
    together = synchronised(copy.deepcopy(alone))
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (alone, together)]
    first = sum(sizes[: dist.get_rank()])
    for x in batches:
        for model, part, optimizer in zip(
            (alone, together),
            (x, x[first : first + sizes[dist.get_rank()]]),
            optimizers,
            strict=True,
        ):
            optimizer.zero_grad()
            loss(model, part).backward()
            if model is together:
                average_gradients(model)
            optimizer.step()
    expected = alone.state_dict()
    for name, value in together.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)
    x = batches[0]
    torch.testing.assert_close(together.eval()(x), alone.eval()(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [ARM, PublishedARM])
def test_training_in_two_processes_is_that_of_one(make: type[ARM | PublishedARM]) -> None:
    run(_training_is_that_of_one_process, (4, 4), make)


def _without_synchronisation_processes_keep_their_own_mean(sizes: tuple[int, ...]) -> None:
    arm = PublishedARM(16, (4, 4))
    torch.manual_seed(dist.get_rank())
    arm(torch.randn(4, 16, 4, 4))
    means = [torch.empty_like(arm.running_common) for _ in sizes]
    dist.all_gather(means, arm.running_common)
    assert not torch.equal(*means)


def test_without_synchronisation_processes_keep_their_own_mean() -> None:
    run(_without_synchronisation_processes_keep_their_own_mean, (4, 4))


@pytest.mark.parametrize("make", [ARM, PublishedARM])
def test_a_synchronised_arm_runs_in_one_process(make: type[ARM | PublishedARM]) -> None:
    arm = make(16, (4, 4))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(arm))
    x = torch.randn(4, 16, 4, 4)
    assert torch.equal(converted.eval()(x), arm.eval()(x))
    assert {*converted.state_dict()} == {*arm.state_dict()}
    assert torch.equal(converted.train()(x), arm.train()(x))
