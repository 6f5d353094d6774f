"""What `check_loss` reports, and what its pytest decorator and its command do with it."""

import contextlib
import io
import sys
from pathlib import Path

import pytest
import torch

import mutants
from mutants import MUTANTS
from unmuddle.cli import main
from unmuddle.testing import LAWS, BrokenLawError, Loss, check_loss, parametrize_with_laws

pytest_plugins = ["pytester"]


def test_a_counter_example_is_small_and_its_code_shows_it() -> None:
    (result,) = check_loss(MUTANTS["rotation"].fn, laws=[LAWS["rotation"]]).results
    assert (result.batch.n, result.batch.structure) == (2, "random")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(result.code, {"rotation": mutants.rotation})
    assert "relation='=='" in printed.getvalue()
    assert f"{result.found:.4f}" in printed.getvalue()
    assert f"{result.expected:.4f}" in printed.getvalue()


def test_a_report_says_what_failed_with_both_numbers() -> None:
    report = check_loss(MUTANTS["padding"].fn, kinds=("pairwise",))
    text = str(report)
    assert text.startswith("padding: 1 failed, ")
    assert "found " in text
    assert ", expected == " in text
    assert "print(laws.padding(Loss(padding), Batch(n=3, dim=1, " in text
    with pytest.raises(BrokenLawError, match="padding breaks 1 laws\npadding: Features that are"):
        report.raise_if_failed()
    assert {result.status for result in report.results} == {"passed", "failed", "not applicable"}


def test_laws_ask_only_what_a_loss_is_meant_to_keep() -> None:
    names = {law.name for law in LAWS.values() if law.applies(Loss(mutants.scores, ("logits",)))}
    assert "renamed_scores" in names
    assert not names & {"rotation", "rescaling", "renaming", "equal_rows", "mask_of_labels"}


@pytest.mark.parametrize(
    ("raised", "loss"),
    [
        ("ZeroDivisionError: division by zero", lambda features, labels: 1 / 0),
        ("TypeError: loss: expected a tensor, got float", lambda features, labels: 1.0),
    ],
)
def test_a_loss_that_raises_breaks_the_law(raised: str, loss) -> None:
    (result,) = check_loss(loss, laws=[LAWS["finite_value"]]).results
    assert result.status == "failed"
    assert result.numbers == raised


def test_a_loss_that_depends_on_nothing_is_tried_as_any_other() -> None:
    report = check_loss(lambda features, labels: features.new_tensor(1.0), kinds=("pairwise",))
    assert [result.law.name for result in report.of("failed")] == ["nan_is_not_hidden"]


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
    assert main(["laws", "my_losses:honest", "--kinds", "logits"]) == 0
    assert "CrossEntropyLoss: 0 failed" in capsys.readouterr().out
    assert main(["laws", "my_losses:Spread"]) == 1
    assert "failed  one_sample" in capsys.readouterr().out
    for wrong in ("my_losses:nothing", "nowhere:loss", "my_losses", "my_losses:torch"):
        assert main(["laws", wrong]) == 2
        assert f"unmuddle laws: error: {wrong}: " in capsys.readouterr().err
    assert main(["laws", "my_losses:honest", "--kinds", "nice"]) == 2
    assert "kinds: expected some of" in capsys.readouterr().err
