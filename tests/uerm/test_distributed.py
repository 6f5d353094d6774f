"""UERM in several processes: the ledger and labels of one process that saw the same samples."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from processes import run
from unmuddle import UERM
from unmuddle.uerm import Evidence, Proposals

SAMPLES, CLASSES, EPOCHS = 40, 4, 4


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
    labels = torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(9))
    return UERM(labels, CLASSES, warmup_epochs=2, **options)


def train(uerm: UERM, rank: int, sizes: tuple[int, ...]) -> UERM:
    start = sum(sizes[:rank])
    for epoch in range(EPOCHS):
        features, logits, ids = epoch_rows(epoch, sum(sizes))
        mine = slice(start, start + sizes[rank])
        for batch in zip(*(t[mine].split(7) for t in (features, logits, ids)), strict=True):
            uerm(*batch)
        uerm.end_epoch()
    return uerm


def same_as_one_process(sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    alone = torch.load(options.pop("saved"))
    together = train(fresh(options), dist.get_rank(), sizes)
    for name, value in together.state_dict().items():
        if name.startswith(("ledger", "predictions", "uncertainty", "weight", "epoch")):
            assert torch.equal(value.nan_to_num(), alone[name].nan_to_num()), name


@pytest.mark.parametrize("sizes", [(120,), (70, 50), (80, 0, 40), (30, 61, 9, 20)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"outcome": "soft", "dtype": torch.float16, "max_fraction": 0.2},
        {"history": "topk", "k": CLASSES},
        {"policy": "scn", "estimator": "attention", "feature_dim": 5},
    ],
    ids=["default", "soft", "topk", "scn"],
)
def test_every_process_holds_what_one_process_would(tmp_path, sizes, options) -> None:
    alone = train(fresh(options), 0, (sum(sizes),))
    assert len(alone.ledger.events()) > 3
    torch.save(alone.state_dict(), tmp_path / "alone.pt")
    run(same_as_one_process, sizes, options | {"saved": str(tmp_path / "alone.pt")})


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
