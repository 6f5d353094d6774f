"""UERM in several processes: the ledger and labels of one process that saw the same samples."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.helpers.processes import run
from unmuddle import UERM
from unmuddle.uerm import Evidence, Proposals

SAMPLES, CLASSES, EPOCHS = 200, 4, 4


def epoch_rows(epoch: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and ids of an epoch; ids repeat, so samples are seen by several processes."""
    g = torch.Generator().manual_seed(epoch)
    ids = torch.randint(SAMPLES, (rows,), generator=g)
    # A sample's logits lean to one class, so that some labels are contradicted.
    logits = torch.randn(rows, CLASSES, generator=g)
    logits[torch.arange(rows), ids % CLASSES] += 3
    return torch.randn(rows, 5, generator=g), logits, ids


def fresh(options: dict[str, Any]) -> UERM:
    torch.manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    labels[::5] = torch.randint(CLASSES, (SAMPLES // 5,))
    return UERM(labels, CLASSES, warmup_epochs=2, **options)


def train(uerm: UERM, rank: int, sizes: tuple[int, ...]) -> UERM:
    start = sum(sizes[:rank])
    for epoch in range(EPOCHS):
        features, logits, ids = epoch_rows(epoch, sum(sizes))
        mine = slice(start, start + sizes[rank])
        for batch in zip(*(t[mine].split(30) for t in (features, logits, ids)), strict=True):
            uerm(*batch)
        uerm.end_epoch()
    return uerm


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "half": {"dtype": torch.float16, "max_fraction": 0.1},
    "topk": {"top_k": CLASSES},
    "scn": {"policy": "scn", "estimator": "attention", "feature_dim": 5},
}


def same_as_one_process(sizes: tuple[int, ...], saved: str) -> None:
    for kind, alone in torch.load(saved).items():
        together = train(fresh(KINDS[kind]), dist.get_rank(), sizes)
        for name, value in together.state_dict().items():
            assert torch.equal(value.nan_to_num(), alone[name].nan_to_num()), (kind, name)


def weighted_means(sizes: tuple[int, ...], weights: Tensor) -> None:
    """Each process holds a part; `gather` gives the value and the gradient of the whole."""
    g = torch.Generator().manual_seed(0)
    losses = torch.rand(len(weights), generator=g, dtype=torch.float64)
    out = fresh({})(torch.zeros(len(weights), 5), torch.zeros(len(weights), CLASSES),
                    torch.arange(len(weights)))  # fmt: skip
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    out._replace(weight=weights).weighted_mean(scale * losses).backward()
    expected = scale.grad.clone()

    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    local = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    part = out._replace(weight=weights[mine])
    value = part.weighted_mean(local * losses[mine], gather=True)
    value.backward()
    averaged = local.grad.clone()
    dist.all_reduce(averaged)
    torch.testing.assert_close(averaged / world, expected)
    torch.testing.assert_close(value.detach(), 2 * expected)


@pytest.mark.parametrize(
    "weights", [torch.linspace(0, 1, 30), torch.zeros(30), torch.arange(30.0).clamp(min=20) - 20]
)
@pytest.mark.parametrize("sizes", [(30,), (20, 10), (0, 12, 18)])
def test_the_weighted_mean_is_that_of_one_process(sizes: tuple[int, ...], weights: Tensor) -> None:
    run(weighted_means, sizes, weights)


@pytest.mark.parametrize("sizes", [(400,), (230, 170), (260, 0, 140), (100, 201, 29, 70)])
def test_every_process_holds_what_one_process_would(tmp_path, sizes) -> None:
    alone = {kind: train(fresh(options), 0, (sum(sizes),)) for kind, options in KINDS.items()}
    assert all(len(uerm.ledger.events()) > 10 for uerm in alone.values())
    states = {kind: uerm.state_dict() for kind, uerm in alone.items()}
    torch.save(states, tmp_path / "alone.pt")
    run(same_as_one_process, sizes, str(tmp_path / "alone.pt"))


def failing_policy(_evidence: Evidence) -> Proposals:
    raise ZeroDivisionError("mine")


def failing_end_of_epoch(sizes: tuple[int, ...]) -> None:
    uerm = fresh({"policy": failing_policy})
    uerm.end_epoch()
    with pytest.raises((RuntimeError, ZeroDivisionError), match="mine"):
        uerm.end_epoch()
    assert uerm.epoch == 1


def test_a_policy_that_fails_fails_in_every_process_and_hangs_none() -> None:
    run(failing_end_of_epoch, (1, 1))


class WithUERM(torch.nn.Module):
    """As in a LightningModule, the relabeler is a part of what is wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.uerm = torch.nn.Linear(5, CLASSES), fresh({})

    def forward(self, features: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        return self.head(features).sum() + self.uerm(features, logits, ids).weight.sum()


def _wrapped_by_ddp(sizes: tuple[int, ...], saved: str) -> None:
    model = WithUERM()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    start = sum(sizes[: dist.get_rank()])
    for epoch in range(EPOCHS):
        rows = [t[start : start + sizes[dist.get_rank()]] for t in epoch_rows(epoch, sum(sizes))]
        for batch in zip(*(t.split(30) for t in rows), strict=True):
            wrapped(*batch).backward()
        model.uerm.end_epoch()
    for name, value in torch.load(saved)["default"].items():
        assert torch.equal(model.uerm.state_dict()[name].nan_to_num(), value.nan_to_num()), name


def test_a_model_that_holds_it_can_be_wrapped_where_buffers_are_not_broadcast(tmp_path) -> None:
    alone = train(fresh({}), 0, (400,)).state_dict()
    torch.save({"default": alone}, tmp_path / "alone.pt")
    run(_wrapped_by_ddp, (210, 190), str(tmp_path / "alone.pt"))
