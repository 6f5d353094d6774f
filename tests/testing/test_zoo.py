"""Losses that people write: wrong ones are caught, right ones are not accused."""

import pytest

from tests.helpers import ROOT, gathers, mutants, thinned, zoo
from tests.helpers.mutants import MUTANTS
from tests.helpers.zoo import EXEMPT, MISSED, RIGHT, WRONG
from unmuddle import supcon_loss
from unmuddle.testing import LAWS, check_loss

GATHERED = {mutant.fn.__name__ for mutant in MUTANTS.values() if mutant.processes}
GATHER_LAWS = ["equal_shares", "unequal_shares", "empty_share"]


def test_the_page_says_how_many_there_are() -> None:
    page = " ".join((ROOT / "docs/pages/laws.md").read_text().split())
    assert f"holds {len(WRONG)} wrong and {len(RIGHT)} right losses" in page
    assert f"{len(WRONG) - len(MISSED)} of the wrong ones are caught" in page
    for name in ("README.md", "CHANGELOG.md"):
        assert f"{len(LAWS)} laws" in (ROOT / name).read_text()


@pytest.mark.parametrize("name", thinned(WRONG, 3))
def test_a_wrong_loss_is_caught(name: str) -> None:
    """One law after the other, those of few kinds of losses first."""
    is_caught = any(
        check_loss(WRONG[name].fn, kinds=WRONG[name].kinds, laws=[law]).of("failed")
        for law in reversed(LAWS)
    )
    assert is_caught == (name not in MISSED)


@pytest.mark.parametrize("name", thinned(RIGHT, 7))
def test_a_right_loss_is_not_accused(name: str) -> None:
    report = check_loss(RIGHT[name].fn, kinds=RIGHT[name].kinds)
    assert {result.law.name for result in report.of("failed")} == EXEMPT.get(name, set())


@pytest.mark.parametrize(
    "name",
    """translation far_from_origin near_negative far_negative own_pairs larger_margin score_shift
    equal_scores proper proper_gradient proper_sigmoid proper_sigmoid_gradient certain_prediction
    rare_class mean_of_parts sum_of_parts perfect_mask empty_mask one_pixel disjoint_mask
    swapped_masks margin_acts own_proxy gradient_at_proxy tensors_are_state""".split(),
)
def test_a_law_passes_on_three_right_losses(name: str) -> None:
    passed = 0
    for specimen in RIGHT.values():
        (result,) = check_loss(specimen.fn, kinds=specimen.kinds, laws=[name]).results
        passed += result.status == "passed"
        if passed == 3:
            return
    raise AssertionError(f"{name}: passed by {passed}")


@pytest.mark.parametrize(
    "fn",
    [
        gathers.gathered,
        pytest.param(gathers.gathered_inside, marks=pytest.mark.slow),
        pytest.param(gathers.mean_of_all_samples, marks=pytest.mark.slow),
    ],
)
def test_a_right_gather_has_the_gradient_of_one_process(fn) -> None:
    report = check_loss(fn, kinds=["supervised"], laws=GATHER_LAWS, processes=2)
    assert len(report.of("passed")) == len(GATHER_LAWS), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(gathers.FAULTS.keys() - GATHERED))
def test_a_wrong_gather_is_caught(name: str) -> None:
    fn, laws = getattr(gathers, name), ["equal_shares"]
    report = check_loss(fn, kinds=["supervised"], laws=laws, processes=2)
    assert report.of("failed"), str(report)


@pytest.mark.parametrize("fn", [supcon_loss, mutants.supcon, zoo.supcon])
def test_a_temperature_that_divides_passes(fn) -> None:
    (result,) = check_loss(fn, kinds=["contrastive"], laws=["opposite_classes"]).results
    assert result.status == "passed"


def test_all_laws_that_are_not_asked_say_why() -> None:
    report = check_loss(RIGHT["triplet"].fn, kinds=RIGHT["triplet"].kinds)
    reasons = {result.law.name: result.reason for result in report.of("not asked")}
    assert reasons["equal_scores"] == "kind cross_entropy"
    assert reasons["equal_shares"] == "processes=2"
    assert reasons["deep_copy"] == "a module"
    assert len(report.results) == len(LAWS)
