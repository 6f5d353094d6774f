"""What is built installs, works without the source tree, and is typed."""

import os
import re
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from tests.helpers import ROOT

USER_FILE = """
import torch
from unmuddle import ARM, UERM, LabelLedger, SupConLoss, attach_arm, supcon_loss
from unmuddle.testing import check_loss

value: torch.Tensor = SupConLoss(temperature=0.1)(torch.randn(4, 8), torch.arange(4))
value = supcon_loss(torch.randn(4, 8), torch.arange(4), reduction="none")
assert callable(check_loss)
arm: torch.nn.Module = ARM(64, (3, 3))
model = attach_arm(torch.nn.Conv2d(3, 8, 3), num_classes=2, input_size=8)
event: int = UERM(torch.arange(3), num_classes=3).end_epoch()[0].event
ledger: LabelLedger = UERM(torch.arange(3), num_classes=3).ledger
"""
WRONG_FILE = (
    USER_FILE + "wrong: str = ledger.current_labels\nsupcon_loss(torch.ones(2, 2), reduction=3)\n"
)


def call(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory) -> Path:
    """A folder into which the wheel is installed, torch aside."""
    target = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    call(*pip, "--target", target, wheel)
    return target


def test_the_wheel_holds_the_package_alone_and_what_it_reads(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        about = HeaderParser().parsestr(archive.read(metadata).decode())
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "unmuddle").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert about["License-Expression"] == "MIT"
    assert about["License-File"] == "LICENSE"
    assert about["Requires-Python"] == ">=3.10"
    needed = [r for r in about.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(r.split(">")[0] for r in needed) == ["numpy", "torch"]
    assert about["Summary"]
    assert len(about.get_payload()) > 1000, "the README"


def test_the_sdist_holds_the_tests_and_builds_the_same_wheel(built: Path, tmp_path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    call("tar", "-xf", sdist, "-C", tmp_path)  # tarfile has a filter from Python 3.11.4 on only
    (folder,) = tmp_path.iterdir()
    assert (folder / "tests" / "smoke.py").exists()
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir")
    call(*build, tmp_path / "again", folder)
    (first,), (again,) = built.glob("*.whl"), (tmp_path / "again").glob("*.whl")
    assert first.name == again.name, "the version too"
    with ZipFile(first) as one, ZipFile(again) as two:
        assert {i.filename: i.CRC for i in one.infolist()} == {
            i.filename: i.CRC for i in two.infolist()
        }


def test_the_installed_package_works_without_the_source_tree(installed: Path, tmp_path) -> None:
    script = tmp_path / "smoke.py"
    script.write_text((ROOT / "tests" / "smoke.py").read_text())
    assert str(installed) in call(sys.executable, script, "--anywhere", PYTHONPATH=str(installed))


@pytest.mark.parametrize(
    "checker",
    [
        ("pyright", "--pythonpath", sys.executable),
        pytest.param(
            ("mypy", "--python-executable", sys.executable, "--cache-dir", os.devnull),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["pyright", "mypy"],
)
def test_types_reach_the_users_checker(checker: tuple[str, ...], tmp_path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(USER_FILE)
    wrong.write_text(WRONG_FILE)
    command = [sys.executable, "-m", *checker, right, wrong]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"(right|wrong)\.py:(\d+):", said)
    last = len(WRONG_FILE.splitlines())
    assert set(found) == {("wrong", str(last - 1)), ("wrong", str(last))}, said


def test_the_citation_names_the_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] == "MIT"
    assert len(cited["references"]) == 4
    assert all({"type", "title", "authors"} <= set(work) for work in cited["references"])


def test_the_top_level_holds_what_a_stranger_expects() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = call("git", "-C", ROOT, "ls-files").split("\n")
    top = {name.partition("/")[0] for name in listed if name}
    files = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"}
    folders = {"benchmarks", "docs", "src", "tests"}
    dotfiles = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}
    assert top == files | folders | dotfiles | {"pyproject.toml"}
