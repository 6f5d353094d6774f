"""The Triton kernels: values on a GPU, without one in the interpreter; resources on real GPUs."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.pages import section
from tests.helpers import ROOT, thinned
from tests.helpers.problems import KINDS, draw
from unmuddle import supcon_loss
from unmuddle.supcon.engine import pose
from unmuddle.supcon.problem import ContrastSet, Options
from unmuddle.testing import parametrize_with_laws

triton = pytest.importorskip("triton")
KNOWS_PAIRS = ["int", "views", "keys", "unlabelled keys"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def kernels(*tensors: Tensor, **options) -> Tensor:
    """The loss by the kernels, of CPU tensors."""
    there = [t.to(DEVICE) for t in tensors]
    options = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    return supcon_loss(*there, **options, impl="triton").cpu()


def reference(*tensors: Tensor, **options) -> Tensor:
    return supcon_loss(*tensors, **options, impl="reference")


def run(loss, drawn, dtype: torch.dtype, **options) -> list[Tensor]:
    """Value and gradients of features, temperature and keys, in fp64."""
    leaves = [
        drawn.features.to(dtype),
        torch.tensor(options.pop("temperature"), dtype=torch.float64),
    ]
    arguments = dict(drawn.arguments)
    if "keys" in arguments:
        leaves.append(arguments["keys"].to(dtype))
        arguments["keys"] = leaves[2]
    for leaf in leaves:
        leaf.requires_grad_()
    value = loss(leaves[0], **arguments, temperature=leaves[1], **options)
    return [t.double() for t in (value.detach(), *torch.autograd.grad(value, leaves))]


@pytest.mark.slow
@parametrize_with_laws(
    kernels,
    kinds=("pairwise", "normalised", "supervised", "contrastive", "soft", "views"),
)
def test_laws(law) -> None:
    law()


SIZES = ((2, 1, False), (3, 3, False), (33, 17, True), (65, 17, True), (70, 150, False))


@pytest.mark.parametrize(
    ("kind", "size", "temperature"), thinned(itertools.product(KINDS, SIZES, [0.02, 0.5]), 9)
)
def test_kernels_agree_with_the_reference(
    kind: str, size: tuple[int, int, bool], temperature: float
) -> None:
    n, dim, weighted = size
    drawn = draw(kind, n, dim, seed=n, dtype=torch.float32, weighted=weighted)
    modes = itertools.product(["out", "in"], ["all", "negatives"])
    for positives, denominator in modes if kind in KNOWS_PAIRS else [("out", "all")]:
        options = {"temperature": temperature, "positives": positives, "denominator": denominator}
        truth = run(reference, drawn, torch.float64, **options)
        got = run(kernels, drawn, torch.float32, **options)
        for mine, true in zip(got, truth, strict=True):
            scale = float(true.abs().max()) + 1 / temperature
            assert float((mine - true).abs().max()) < 3e-6 * scale


def test_a_temperature_is_trained_with_rows_of_any_length() -> None:
    drawn = draw("keys", 33, 17, seed=0, dtype=torch.float32)
    options = {"temperature": 0.5, "normalize": False}
    truth = run(reference, drawn, torch.float64, **options)
    got = run(kernels, drawn, torch.float32, **options)
    for mine, true in zip(got, truth, strict=True):
        assert float((mine - true).abs().max()) < 3e-6 * (float(true.abs().max()) + 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_kernels_agree_within_its_rounding(dtype: torch.dtype) -> None:
    drawn = draw("int", 70, 33, seed=0, dtype=torch.float32)
    drawn = drawn._replace(features=drawn.features.to(dtype))
    truth = run(reference, drawn, torch.float64, temperature=0.2)
    got = run(kernels, drawn, dtype, temperature=0.2)
    assert kernels(drawn.features, **drawn.arguments).dtype == torch.float32
    eps = torch.finfo(dtype).eps
    for mine, true in zip(got, truth, strict=True):
        assert float((mine - true).abs().max()) < 8 * eps * float(true.abs().max())


def test_a_tiny_loss_does_not_vanish_in_half_precision() -> None:
    drawn = draw("int", 70, 33, seed=0, dtype=torch.float32)
    gradients = []
    for scale in (1.0, 2.0**-20):
        x = drawn.features.clone().requires_grad_()
        with torch.autocast(DEVICE, torch.float16):
            loss = scale * kernels(x, **drawn.arguments)
        gradients.append(torch.autograd.grad(loss, x)[0] / scale)
    torch.testing.assert_close(*gradients)


def test_autocast_multiplies_in_its_dtype() -> None:
    features, labels = torch.randn(40, 16), torch.arange(40) % 3
    single = kernels(features, labels)
    with torch.autocast(DEVICE, torch.float16):
        half = kernels(features, labels)
    assert half.dtype == torch.float32
    assert half != single
    torch.testing.assert_close(half, single, rtol=1e-2, atol=0)


@pytest.fixture
def nan_memory():
    """Uninitialised memory is NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("temperature", [0.2, 1e-6])
@pytest.mark.parametrize("positives", ["out", "in"])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.usefixtures("nan_memory")
def test_what_was_not_written_is_not_read(temperature: float, positives: str) -> None:
    drawn = draw("keys", 67, 5, seed=1, dtype=torch.float32)
    results = run(kernels, drawn, torch.float32, temperature=temperature, positives=positives)
    assert all(result.isfinite().all() for result in results)
    drawn = draw("keys", 67, 5, seed=1, dtype=torch.float32)  # keys that need no gradient
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = kernels(drawn.features.requires_grad_(), **drawn.arguments, temperature=temperature)
        assert torch.autograd.grad(loss, drawn.features)[0].isfinite().all()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("positives", "denominator", "is_bounded"),
    [("out", "all", True), ("out", "all", False), ("in", "negatives", False)],
)
@pytest.mark.usefixtures("nan_memory")
def test_the_parts_of_processes_add_up(
    positives: str, denominator: str, is_bounded: bool, soft: bool
) -> None:
    if soft and positives == "in":
        pytest.skip("not a problem of the kernels")
    from unmuddle.supcon.backends import triton as backend

    single = torch.float32
    options = Options(
        50, True, is_bounded, -100, single, positives, denominator, single, "triton",
        True, True, True,
    )  # fmt: skip
    x, labels = torch.randn(70, 5, device=DEVICE), torch.randint(4, (70,), device=DEVICE)
    if soft:
        labels = torch.rand(70, 3, device=DEVICE)
    problem = pose(ContrastSet(x, labels, None, None, None, torch.tensor(5.0)), options)
    grad = torch.rand(50, device=DEVICE)
    whole = backend.forward(x, problem)
    dx, dt = backend.backward(x, problem, whole.residuals, grad)
    parts = [problem._replace(rows=slice(*ends)) for ends in [(0, 21), (21, 21), (21, 50)]]
    losses = [backend.forward(x, part) for part in parts]
    torch.testing.assert_close(torch.cat([part.each for part in losses]), whole.each)
    z, norm, _, places = losses[0].residuals
    known = z, norm, torch.cat([part.residuals[2] for part in losses], 1), places
    of_parts = [backend.backward(x, part, known, grad) for part in parts]
    torch.testing.assert_close(torch.stack([of[0] for of in of_parts]).sum(0), dx)
    torch.testing.assert_close(torch.stack([of[1] for of in of_parts]).sum(0), dt)
    assert (of_parts[0][0][21:50] == 0).all()


@pytest.mark.parametrize(
    "options", [{}, {"positives": "in"}, {"denominator": "negatives"}, {"normalize": False}]
)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
def test_nan_in_gives_nan_out(options: dict, ignored: bool) -> None:
    features, labels = torch.randn(9, 4), torch.arange(9) % 3
    features[2, 1] = torch.nan
    labels[2] = -100 if ignored else 2
    assert kernels(features, labels, **options).isnan()


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_nan_shows_where_there_is_no_term() -> None:
    features = torch.randn(9, 4)
    features[2, 1] = torch.nan
    losses = kernels(
        features,
        torch.zeros(9).long(),
        denominator="negatives",
        reduction="none",
        no_positive="zero",
    )
    assert losses.isnan().all()


def test_what_the_kernels_do_not_take_is_an_error() -> None:
    soft, features = torch.rand(6, 3), torch.randn(6, 4)
    with pytest.raises(ValueError, match="impl: 'triton' takes .* with integer labels only"):
        kernels(features, soft, positives="in")
    with pytest.raises(ValueError, match="impl: 'triton' takes D <= 2048, got D = 2049"):
        kernels(torch.randn(6, 2049), torch.arange(6) % 2)


def test_outside_of_the_interpreter_a_cpu_tensor_is_an_error() -> None:
    code = (
        "import torch; from unmuddle import supcon_loss\n"
        "supcon_loss(torch.randn(4, 3), torch.arange(4) % 2, impl='triton')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "impl: 'triton' needs CUDA tensors, got cpu" in done.stderr


def compiled(tmp_path: Path, *arguments: str) -> list[dict]:
    """What `benchmarks/timings/kernels.py` finds, outside of the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.timings.kernels", "--json"]
    command += [str(tmp_path / "rows.json"), *arguments]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
    return json.loads((tmp_path / "rows.json").read_text())


def assert_fits(row: dict) -> None:
    assert row["spilled_bytes"] == 0, row
    assert row["shared_bytes"] <= row["shared_limit"], row
    assert row["registers"] <= 255, row
    assert not row["serialised"], row


@pytest.mark.slow
def test_kernels_for_an_h200_use_what_the_page_says(tmp_path: Path) -> None:
    rows = compiled(tmp_path, *"--gpus 90 --dims 128 768 --types bf16".split())
    assert len(rows) == 2 * (6 + 5)  # dims, kernels over pairs and over rows
    page = section("benchmarks.md", "kernels").splitlines()
    for row in rows:
        assert_fits(row)
        if f"Triton {triton.__version__}." in page and row["instructions_a_pair"]:
            assert f"| {' | '.join(map(str, row.values()))} |" in page


@pytest.mark.slow
def test_compiled_for_real_gpus_nothing_spills(tmp_path: Path) -> None:
    rows = compiled(tmp_path)
    assert len(rows) == 3 * 7 * (7 + 7 + 11 + 11)  # GPUs, dims, kernels of each type
    for row in rows:
        assert_fits(row)
