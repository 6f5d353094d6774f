"""Each law lives: it kills the mutant made for it and lets honest losses pass."""

import contextlib
import io

import pytest
import torch

from tests.helpers import mutants
from tests.helpers.mutants import MUTANTS, SOFT, VIEWS
from unmuddle.testing import LAWS, check_loss


def test_there_are_enough_laws_and_each_has_its_mutant() -> None:
    assert len(LAWS) >= 25
    assert MUTANTS.keys() == LAWS.keys()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_law_kills_its_mutant_and_shows_it_without_this_package(name: str) -> None:
    mutant = MUTANTS[name]
    (result,) = check_loss(
        mutant.fn, kinds=mutant.kinds, laws=[LAWS[name]], processes=mutant.processes
    ).results
    assert result.status == "failed"
    code = result.code.replace("unmuddle.testing.saved_bytes", "")
    assert "unmuddle" not in code
    compile(code, name, "exec")
    if mutant.processes is None and result.error is None:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {"loss": mutant.fn})
        assert printed.getvalue() or name == "linear_memory"


@pytest.mark.parametrize(
    ("fn", "kinds"),
    [
        (mutants.supcon, (*SOFT, *VIEWS)),
        (mutants.scores, ("logits",)),
        pytest.param(mutants.Honest(), (*SOFT, *VIEWS), marks=pytest.mark.slow),
    ],
    ids=["function", "scores", "module"],
)
def test_honest_losses_keep_every_law(fn, kinds) -> None:
    check_loss(fn, kinds=kinds).raise_if_failed()


def triplet(features, labels):
    distances = (features[:, None] - features).square().sum(2)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    excess = (distances[:, :, None] - distances[:, None] + 0.3).relu()
    chosen = positive[:, :, None] & ~same[:, None]
    return excess[chosen].sum() / chosen.sum().clamp(min=1)


def hardest(features, labels):
    distances = (features[:, None] - features).square().sum(2)
    same = labels[:, None] == labels
    far = distances.masked_fill(~same, -torch.inf).max(1).values
    near = distances.masked_fill(same, torch.inf).min(1).values
    return torch.nn.functional.softplus(far - near + 0.3).mean()


def cold(features, labels):
    z = torch.nn.functional.normalize(features)
    itself = torch.eye(len(z), dtype=torch.bool)
    similar = (z @ z.T / 0.02).masked_fill(itself, -torch.inf)
    log_p = similar - similar.logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    counts = positive.sum(1)
    if not counts.any():
        return 0 * features.sum()
    return -(log_p.masked_fill(~positive, 0).sum(1) / counts)[counts > 0].mean()


@pytest.mark.parametrize("fn", [triplet, hardest, cold])
def test_sound_losses_are_not_accused(fn) -> None:
    check_loss(fn).raise_if_failed()


def test_statements_fit_a_table() -> None:
    statements = [law.statement for law in LAWS.values()]
    assert all(10 < len(statement) < 100 for statement in statements)
    assert len(set(statements)) == len(statements)
