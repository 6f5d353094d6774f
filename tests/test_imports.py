"""What importing costs: torch and numpy, nothing else, and no other part."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

OPTIONAL = [
    "torchvision",
    "timm",
    "matplotlib",
    "hypothesis",
    "triton",
    "sklearn",
    "accelerate",
    "scipy",
    "PIL",
    "rich",
    "safetensors",
    "docstring_parser",
]

BLOCK = f"""
import sys
import torch  # looks for triton itself
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {OPTIONAL!r}:
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Block())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_import_with_optional_packages_blocked() -> None:
    python(
        f"{BLOCK}\nfrom unmuddle import *\nprint(ARM, UERM, LabelLedger, SupConLoss, supcon_loss)"
    )


def test_import_loads_no_optional_package_and_touches_no_gpu() -> None:
    loaded = python(
        "import sys, torch, unmuddle\n"
        "from unmuddle import ARM, UERM, SupConLoss\n"
        f"print([m for m in {OPTIONAL!r} if m in sys.modules], torch.cuda.is_initialized())"
    )
    assert loaded == "[] False"


def test_assertions_need_no_hypothesis_and_strategies_say_how_to_get_it() -> None:
    said = python(
        f"{BLOCK}\nimport torch\n"
        "from unmuddle.testing import Batch, Loss, assert_within_budget, check_loss, laws, saved_bytes\n"
        "loss = torch.nn.CrossEntropyLoss()\n"
        "print(laws.permutation(Loss(loss, ['logits']), Batch(4, 3, 2)).holds)\n"
        "try:\n    check_loss(loss, kinds=['logits'])\nexcept ImportError as error:\n    print(error)"
    )
    assert said.splitlines() == [
        "True",
        "unmuddle.testing.strategies needs hypothesis: pip install 'unmuddle[testing]'",
    ]


@pytest.mark.parametrize(
    ("part", "others"), [("supcon", "arm uerm"), ("arm", "supcon uerm"), ("uerm", "supcon arm")]
)
def test_a_part_loads_no_other_part(part: str, others: str) -> None:
    code = (
        f"import sys, unmuddle.{part}\n"
        f"print([o for o in {others.split()!r} + ['recipe', 'report'] if 'unmuddle.' + o in sys.modules])"
    )
    assert python(code) == "[]"


def test_unknown_name_is_an_attribute_error() -> None:
    import unmuddle

    with pytest.raises(AttributeError, match="no attribute 'Arm'"):
        _ = unmuddle.Arm
    assert set(unmuddle.__all__) <= set(dir(unmuddle))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_find_what_they_import(path: Path) -> None:
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
