"""What `check_loss` reports, and what its pytest decorator and its command do with it."""

import contextlib
import io
import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.helpers import mutants
from tests.helpers.mutants import MUTANTS
from unmuddle.cli import main
from unmuddle.testing import (
    LAWS,
    Batch,
    BrokenLawError,
    Finding,
    Loss,
    NotApplicableError,
    Result,
    check_loss,
    law,
    measured,
    parametrize_with_laws,
    try_law,
)

pytest_plugins = ["pytester"]


def printed_by(code: str, **names: object) -> list[float]:
    """Numbers that the code prints, one a line."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return [float(number) for number in re.findall(r"tensor\((-?[\d.]+|nan)", printed.getvalue())]


def test_a_counter_example_is_small_and_its_code_needs_the_loss_alone() -> None:
    (result,) = check_loss(MUTANTS["rotation"].fn, laws=[LAWS["rotation"]]).results
    assert (result.batch.n, result.batch.structure) == (2, "random")
    assert "unmuddle" not in result.code
    assert "from tests.helpers.mutants import rotation as loss\n" in result.code
    assert "x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)" in result.code
    assert "# rotated: x @ q" in result.code
    printed = printed_by(result.code)
    assert printed == pytest.approx([result.expected, result.found], abs=1e-4)


def test_a_loss_without_a_name_is_called_loss() -> None:
    loss = partial(mutants.padding)
    (result,) = check_loss(loss, kinds=["pairwise"], laws=[LAWS["padding"]]).results
    assert "# loss: what was checked" in result.code
    printed = printed_by(result.code, loss=loss)
    assert printed == pytest.approx([result.expected, result.found], abs=1e-4)


def test_losses_of_samples_are_averaged_in_the_code() -> None:
    def loss(features, labels):
        return features[:, 0]

    (result,) = check_loss(loss, laws=["rotation"]).results
    printed = printed_by(result.code, loss=loss)
    assert printed == pytest.approx([result.expected, result.found], abs=1e-4)


def test_a_report_says_what_failed_with_both_numbers() -> None:
    report = check_loss(MUTANTS["padding"].fn, kinds=("pairwise",))
    text = str(report)
    assert text.startswith("padding: 1 failed, ")
    assert "found " in text
    assert ", expected " in text
    assert "(a column of zeros for each column)" in text
    assert "\npassed: finite_value, " in text
    assert "kind normalised (5), " in text
    with pytest.raises(BrokenLawError, match="padding breaks 1 laws\npadding: Features that are"):
        report.raise_if_failed()
    assert {result.status for result in report.results} == {"passed", "failed", "not asked"}


def test_a_report_is_json() -> None:
    def undefined(features, labels):
        return features.sum() * math.nan

    told = json.loads(json.dumps(check_loss(undefined, kinds=["pairwise"]).to_dict()))
    assert sum(told["counts"].values()) == len(told["laws"]) == len(LAWS)
    (entry,) = [entry for entry in told["laws"] if entry["name"] == "finite_value"]
    assert (entry["status"], entry["found"], entry["relation"]) == ("failed", "nan", "is finite")
    (entry,) = [entry for entry in told["laws"] if entry["name"] == "one_hot"]
    assert (entry["status"], entry["reason"]) == ("not asked", "kind soft")


def test_laws_ask_only_what_a_loss_is_meant_to_keep() -> None:
    names = {law.name for law in LAWS.values() if law.applies(Loss(mutants.scores, ("logits",)))}
    assert "renamed_scores" in names
    assert not names & {"rotation", "rescaling", "renaming", "equal_rows", "mask_of_labels"}


def test_a_loss_that_never_works_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        check_loss(lambda features, labels: 1 / 0)
    with pytest.raises(TypeError, match="loss: expected a tensor, got float"):
        check_loss(lambda features, labels: 1.0)
    with pytest.raises(TypeError, match="loss: expected floating point numbers, got torch.int64"):
        parametrize_with_laws(lambda features, labels: labels.sum())
    with pytest.raises(ValueError, match=r"loss: expected a scalar or \(N,\), got \(6, 6\)"):
        check_loss(lambda features, labels: features @ features.T)


def picky(features, labels):
    if len(labels.unique()) < 2:
        raise ValueError("one class only")
    return mutants.supcon(features, labels)


def test_an_error_for_some_batches_breaks_the_law() -> None:
    (result,) = check_loss(picky, laws=[LAWS["finite_value"]]).results
    assert result.numbers == "ValueError: one class only"


def test_a_loss_may_say_that_it_has_no_value_for_a_batch() -> None:
    def careful(features, labels):
        if len(labels.unique()) < 2:
            raise NotApplicableError
        return mutants.supcon(features, labels)

    check_loss(careful).raise_if_failed()


def test_a_loss_of_some_batches_only_is_judged_as_any_other() -> None:
    def biased(features, labels):
        if features.shape[1] != 5:
            raise NotApplicableError
        return cross_entropy(features, labels) + features[0].logsumexp(0)

    (result,) = check_loss(biased, kinds=["logits"], laws=["permutation"]).results
    assert result.status == "failed"


def test_options_mean_nothing_but_for_a_contrastive_loss() -> None:
    def loss(features, labels, views=2, soft=False, logits=False, linear=True, module=None):
        return mutants.supcon(features, labels)

    assert Loss(loss).traits == {"pairwise", "supervised"}
    assert Loss(loss, ["contrastive"]).traits == {"contrastive", "negatives"}


def test_a_law_may_measure_what_it_likes() -> None:
    @law("pairwise")
    def four_times(loss, batch):
        """Four times is four times."""
        measured(loss, lambda x, y: loss.value(x, y), batch.features, batch.labels)
        four = measured(loss, lambda x, y: 4 * loss.value(x, y), batch.features, batch.labels)
        return Finding(4 * loss.value(batch.features, batch.labels), "==", *four)

    check_loss(mutants.supcon, laws=[four_times]).raise_if_failed()


def test_a_profile_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMUDDLE_HYPOTHESIS_PROFILE", "no such")
    check_loss(never, profile="fast", laws=["permutation"])
    (result,) = check_loss(picky, profile="fast", laws=["finite_value"]).results
    assert result.status == "failed"


def test_where_a_loss_is_nan_only_the_law_about_that_is_broken() -> None:
    def undefined(features, labels):
        return features.sum() * float("nan")

    batch = Batch(n=4, dim=3, classes=2)
    status = {name: try_law(LAWS[name], Loss(undefined), batch).status for name in LAWS}
    assert status["finite_value"] == "failed"
    assert status["rotation"] == status["permutation"] == "not asked"
    assert LAWS["rotation"].applies(Loss(undefined))


def never(features, labels):
    raise NotApplicableError


def test_a_loss_without_a_value_is_neither_right_nor_wrong(pytester: pytest.Pytester) -> None:
    assert {result.status for result in check_loss(never).results} == {"not asked"}
    pytester.makepyfile(
        """
        from unmuddle.testing import NotApplicableError, parametrize_with_laws

        def never(features, labels):
            raise NotApplicableError

        @parametrize_with_laws(never, laws=["padding", "rotation"])
        def test_loss(law):
            law()
        """
    )
    assert pytester.runpytest("-p", "no:cacheprovider").parseoutcomes() == {"skipped": 2}


def test_a_module_is_tried_in_the_type_of_the_features() -> None:
    class Centres(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centre = torch.nn.Parameter(torch.ones(6))

        def forward(self, features, labels):
            return (features @ self.centre[: features.shape[1]]).square().mean()

    module = Centres()
    check_loss(module, kinds=[]).raise_if_failed()
    assert module.centre.dtype == torch.float32


def test_what_a_law_does_wrong_is_not_blamed_on_the_loss() -> None:
    @law("pairwise")
    def nothing(loss, batch):
        """Returns nothing."""

    @law("pairwise")
    def above(loss, batch):
        """Knows another relation."""
        return Finding(torch.tensor(1.0), ">=", torch.tensor(5.0))

    for wrong, got in ((nothing, "got None"), (above, "got Finding")):
        with pytest.raises(TypeError, match=rf"expected a Finding of \('==', .*\), {got}"):
            check_loss(mutants.supcon, laws=[wrong])
    with pytest.raises(TypeError, match=r"law: expected names of kinds and options, as law\(\)"):
        law(lambda loss, batch: None)


def test_a_law_of_ones_own_is_shown_by_its_calls() -> None:
    @law(change="as it is")
    def positive(loss, batch):
        """A loss is above 1."""
        return Finding(torch.tensor(1.0), "<=", loss.value(batch.features, batch.labels))

    (result,) = check_loss(mutants.zero_row, kinds=[], laws=[positive]).results
    assert "from tests.helpers.mutants import zero_row as loss\nx = torch.tensor(" in result.code
    (result,) = check_loss(partial(mutants.zero_row), kinds=[], laws=[positive]).results
    assert "# loss: what was checked\nx = torch.tensor(" in result.code


@pytest.mark.parametrize(
    ("kind", "implied"),
    [
        ("distances", {"pairwise"}),
        ("hinge", {"negatives", "supervised"}),
        ("cross_entropy", {"shift_invariant", "logits"}),
        ("proper", {"shift_invariant", "logits"}),
        ("certain", {"logits"}),
        ("dice", {"overlap"}),
    ],
)
def test_a_kind_brings_those_that_follow_from_it(kind, implied: set[str]) -> None:
    assert Loss(cross_entropy, [kind]).traits == {kind, *implied}


def test_equal_numbers_are_shown_in_the_order_of_the_law() -> None:
    (result,) = check_loss(
        MUTANTS["near_negative"].fn, laws=["near_negative"], kinds=["hinge"]
    ).results
    assert (result.found, result.expected) == (0, 0)
    far, near = result.code.split("# a class moved next to another")
    assert "# found 0" in far
    assert "# expected 0" in near
    classes = [text.partition("[\n")[2].partition("\n]")[0].split("\n") for text in (far, near)]
    third = [[float(x) for x in rows[2].strip(" [],").split(",")] for rows in classes]
    assert third[0][0] < 1 < third[1][0], "a row of the class that is moved"


def test_numbers_of_the_code_are_short_where_that_changes_nothing() -> None:
    (result,) = check_loss(MUTANTS["rotation"].fn, laws=["rotation"]).results
    digits = re.findall(r"\d\.(\d+)", result.code.partition("# rotated")[2].partition("print")[0])
    assert digits
    assert max(map(len, digits)) <= 7


def test_a_report_says_what_was_tried_on_few_batches_or_none() -> None:
    def few(features, labels):
        if features.shape != (8, 6):
            raise NotApplicableError
        return features.square().mean()

    text = str(check_loss(few, kinds=["pairwise", "logits"]))
    assert re.search(r"\nof these, on fewer than 10 batches: .*stateless \(\d\)", text)
    assert "\nnot asked, since they say nothing about any batch that was tried: " in text
    assert "\nnot asked; these would ask more laws: " in text


def test_finite_and_nan_are_said_in_words() -> None:
    (result,) = check_loss(MUTANTS["one_sample"].fn, laws=["one_sample"]).results
    assert result.numbers == "found nan, expected a finite number"
    (result,) = check_loss(MUTANTS["nan_is_not_hidden"].fn, laws=["nan_is_not_hidden"]).results
    assert result.numbers.endswith(", expected NaN")


@pytest.mark.parametrize("processes", [1, 0, True, 2.0])
def test_processes_are_two_or_more(processes) -> None:
    with pytest.raises(ValueError, match="processes: expected a whole number from 2 on, got"):
        check_loss(mutants.supcon, processes=processes)


def test_the_plugin_has_an_option_and_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os

        def test_right(assert_laws):
            import torch

            assert os.environ["UNMUDDLE_HYPOTHESIS_PROFILE"] == "fast"
            report = assert_laws(torch.nn.CrossEntropyLoss(), kinds=["proper"], laws=["proper"])
            assert report.of("passed")

        def test_wrong(assert_laws):
            assert_laws(lambda x, y: x.mean(), kinds=["pairwise"], laws=["padding"])
        """
    )
    found = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--laws-profile=fast")
    found.assert_outcomes(passed=1, failed=1)
    found.stdout.fnmatch_lines(["*BrokenLawError: * breaks 1 laws*"])


def test_numbers_that_look_alike_are_shown_in_full() -> None:
    result = Result(LAWS["padding"], "failed", found=1.0, expected=1 + 2**-50)
    assert result.numbers == "found 1, expected 1.0000000000000009"


class RunningMean(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, features, labels):
        value = features.square().mean() * self.scale
        self.mean = 0.9 * self.mean + value.detach()
        return value / (1 + self.mean)


def test_the_given_module_is_left_as_it_is_and_no_law_hides_another() -> None:
    module = RunningMean()
    failed = {r.law.name for r in check_loss(module, kinds=["pairwise"]).of("failed")}
    assert module.mean == 0
    assert module.scale.grad is None
    (alone,) = check_loss(module, kinds=["pairwise"], laws=[LAWS["padding"]]).results
    assert alone.status == "failed"
    assert {"padding", "stateless", "deterministic"} <= failed


def test_options_of_other_losses_have_their_own_meaning() -> None:
    check_loss(torch.nn.functional.cross_entropy, kinds=["logits"]).raise_if_failed()


def test_a_loss_in_fp32_breaks_one_law() -> None:
    def rounded(features, labels):
        return mutants.supcon(features.float(), labels).to(features.dtype)

    failed = check_loss(rounded, kinds=mutants.SUPCON).of("failed")
    assert [result.law.name for result in failed] == ["double_precision"]


def test_a_loss_that_depends_on_nothing_is_tried_as_any_other() -> None:
    report = check_loss(lambda features, labels: features.new_tensor(1.0), kinds=("pairwise",))
    assert not report.of("failed")
    with pytest.raises(ValueError, match="status: expected one of"):
        report.of("fail")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("kinds: expected some of", {"kinds": ["nice"]}),
        ("profile: expected one of", {"profile": "slow"}),
    ],
)
def test_wrong_options_are_named(message: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match=message):
        check_loss(mutants.supcon, **arguments)


def test_what_is_no_loss_is_named() -> None:
    with pytest.raises(TypeError, match="fn: expected a callable loss, got Tensor"):
        check_loss(torch.zeros(3))
    with pytest.raises(TypeError, match="got the class MSELoss; make one of it"):
        check_loss(torch.nn.MSELoss)
    with pytest.raises(TypeError, match="kinds: expected a collection of names, got 'logits'"):
        check_loss(mutants.scores, kinds="logits")
    with pytest.raises(TypeError, match="kinds: expected a collection of names, got None"):
        check_loss(mutants.scores, kinds=None)
    for wrong in ("padding", LAWS["padding"], 3):
        with pytest.raises(TypeError, match="laws: expected several laws or names, got"):
            check_loss(mutants.padding, laws=wrong)
    with pytest.raises(ValueError, match="laws: no law is called 'paddings'"):
        check_loss(mutants.padding, laws=["paddings"])
    with pytest.raises(TypeError, match="laws: expected laws or their names, got 3"):
        check_loss(mutants.padding, laws=[3])
    with pytest.raises(TypeError, match="expected_failures: expected names and reasons, got"):
        parametrize_with_laws(mutants.supcon, expected_failures=["padding"])
    with pytest.raises(ValueError, match="expected_failures: no laws of this loss: symmetry"):
        parametrize_with_laws(mutants.supcon, expected_failures={"symmetry": "a reason"})


def test_expected_failures_are_strict(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from unmuddle.testing import parametrize_with_laws

        def loss(features, labels):
            return features.pow(2).mean()

        @parametrize_with_laws(
            loss,
            kinds=["pairwise", "normalised"],
            expected_failures={"padding": "a mean over features", "rotation": "wrongly expected"},
        )
        def test_loss(law):
            law()
        """
    )
    found = pytester.runpytest("-p", "no:cacheprovider", "-rA")
    found.stdout.fnmatch_lines(["XFAIL*test_loss?padding?*", "FAILED*test_loss?rotation?*"])
    found.stdout.fnmatch_lines(["*BrokenLawError: rescaling: The length of a row*"])
    assert found.parseoutcomes()["xfailed"] == 1


def test_the_command_prints_the_table(capsys, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_losses.py").write_text(
        "import torch\n"
        "class Spread(torch.nn.Module):\n"
        "    def forward(self, features, labels):\n"
        "        return torch.pdist(features).mean()\n"
        "honest = torch.nn.CrossEntropyLoss()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the folder it runs in
    assert main(["laws", "my_losses:honest", "--kinds", "logits", "--json", "told.json"]) == 0
    assert "CrossEntropyLoss: 0 failed" in capsys.readouterr().out
    assert json.loads(Path("told.json").read_text())["counts"]["failed"] == 0
    assert main(["laws", "my_losses:Spread"]) == 1
    assert "\none_sample: " in capsys.readouterr().out
    for wrong in ("my_losses:nothing", "nowhere:loss", "my_losses", "my_losses:torch"):
        assert main(["laws", wrong]) == 2
        assert f"unmuddle laws: error: {wrong}: " in capsys.readouterr().err
    assert main(["laws", "my_losses"]) == 2
    assert "my_losses: TypeError: fn: expected a callable loss, got module" in (
        capsys.readouterr().err
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    assert main(["laws", "broken:loss"]) == 2
    assert "broken:loss: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert main(["laws", "torch:nn.functional.cross_entropy", "--kinds", "logits"]) == 0
    assert main(["laws", "my_losses:honest", "--kinds", "nice"]) == 2
    assert "kinds: expected some of" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_compares_processes(capsys) -> None:
    loss = "tests.helpers.gathers:scaled_twice"
    assert main(["laws", loss, "--kinds", "supervised", "--processes", "2"]) == 1
    assert "\nequal_shares: " in capsys.readouterr().out


def test_a_loss_in_fp32_without_a_gradient_is_caught() -> None:
    def detached(features, labels):
        return torch.nn.functional.cross_entropy(features.float().detach(), labels)

    def right(features, labels):
        return torch.nn.functional.cross_entropy(features.float(), labels)

    def failed(loss) -> set[str]:
        report = check_loss(loss, kinds=["logits"])
        return {result.law.name for result in report.of("failed")}

    assert failed(right) == {"double_precision", "result_dtype"}
    assert failed(detached) == {"double_precision", "result_dtype", "directional_derivative"}


def test_a_loss_that_no_law_could_check_fails() -> None:
    def never(features, labels):
        raise NotApplicableError

    with pytest.raises(BrokenLawError, match="never: no law was checked"):
        check_loss(never).raise_if_failed()


def test_the_code_for_a_loss_without_a_graph_runs(capsys) -> None:
    def detached(features, labels):
        return features.detach().square().sum()

    (result,) = check_loss(detached, laws=["directional_derivative"]).of("failed")
    lines = [line for line in result.code.splitlines() if not line.startswith("loss = ")]
    exec("\n".join(lines), {"loss": detached})
    slope, by_gradient = capsys.readouterr().out.splitlines()
    assert slope != by_gradient == "tensor(0., dtype=torch.float64)"
