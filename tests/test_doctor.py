"""`unmuddle doctor`: agreement first, speed only if all agree."""

import os
import subprocess
import sys

import pytest
import torch

from unmuddle import doctor
from unmuddle.cli import main


@pytest.fixture(autouse=True)
def _without_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_a_sound_machine_is_timed(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "SIZES", (64,))
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.partition('+')[0]}" in out
    assert "SupConLoss on cpu: auto is tiled" in out
    for name in (
        "SupConLoss, dense, cpu",
        "SupConLoss, tiled, cpu",
        "ARM, folded, cpu",
        "UERM, cpu",
    ):
        assert f"  {name}: agrees\n" in out
    assert "SupConLoss, N = 64, D = 128, usual dense code, cpu: " in out
    assert out.count(" ms\n") >= 4


@pytest.mark.parametrize("part", ["SupConLoss, tiled", "ARM, folded", "UERM"])
def test_what_does_not_agree_is_told_and_nothing_is_timed(
    part: str, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    supcon_loss, fold_arm, end_epoch = doctor.supcon_loss, doctor.fold_arm, doctor.UERM.end_epoch
    runs = []

    def wrong_gradient(features, labels, *, impl, temperature):
        loss = supcon_loss(features, labels, impl=impl, temperature=temperature)
        return loss if impl != "tiled" else loss + 1e-3 * (features - features.detach()).sum()

    def wrong_fold(arm):
        return lambda x: fold_arm(arm)(x) * 1.001

    def forgetful(self):
        runs.append(self)
        return end_epoch(self) if len(runs) == 1 else []

    if part == "SupConLoss, tiled":
        monkeypatch.setattr(doctor, "supcon_loss", wrong_gradient)
    elif part == "ARM, folded":
        monkeypatch.setattr(doctor, "fold_arm", wrong_fold)
    else:
        monkeypatch.setattr(doctor.UERM, "end_epoch", forgetful)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"  {part}, cpu: AssertionError: " in out
    assert out.count(": agrees") == 3
    assert "1 do not agree; nothing was timed" in out
    assert " ms" not in out


def test_kernels_are_checked_in_the_interpreter() -> None:
    code = (
        "from unmuddle import doctor\n"
        "doctor.SHAPES = ((5, 3), (130, 40))\n"
        "print([c for c in doctor.checks() if 'triton' in c[0]])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert found.stdout.strip() == "[('SupConLoss, triton, cpu', '')]"
