"""`benchmarks/timings/gpu.py` where there is no GPU: tiny sizes, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytest.importorskip("triton")


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.timings.gpu", "--out", str(out), *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


def test_what_there_was_no_time_for_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "gpu.json", "--minutes", "0")
    assert done.returncode == 1
    assert "left for another call:\n  correct: 70 x 128, torch.float32, random\n" in done.stdout


@pytest.mark.slow
def test_everything_is_measured_once_if_all_agrees(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert run(out).returncode == 0
    results = json.loads(out.read_text())
    assert all(row["right"] and row["same_bits"] for row in results["correct"].values())
    assert {"ceilings", "whole", "sweep"} <= set(results)
    assert not [row for section in results.values() if "error" in section for row in section]
    assert "whole" not in run(out).stdout
    results["correct"]["70 x 128, torch.float32, random"]["right"] = False
    del results["ceilings"]
    out.write_text(json.dumps(results))
    refused = run(out)
    assert refused.returncode == 1
    assert "nothing is timed" in refused.stdout
