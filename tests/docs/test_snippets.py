"""Every example of README and docs runs."""

import os
import re
import shlex
import socket
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from pytest_examples import CodeExample, find_examples

from tests.helpers import ROOT, layouts, thinned
from unmuddle.cli import main

PAGES = ROOT / "docs" / "pages"
# Of `doctor`, which times the machine, there are tests elsewhere.
COMMANDS = (
    *tuple(
        f"unmuddle {name}" for name in ("train", "evaluate", "audit", "repair", "export", "report")
    ),
    "torchrun",
)
EXAMPLES = [
    pytest.param(
        example,
        id=f"{example.path.parent.name}/{example.path.name}:{example.start_line}",
        marks=[pytest.mark.slow] if "processes=" in example.source else [],
    )
    for example in find_examples(ROOT / "README.md", PAGES)
    if example.prefix == "python" and example.path != PAGES / "tutorials" / "labels.md"
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 30


@pytest.mark.filterwarnings("ignore:PublishedARM")  # of an example that shows when ARM warns
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::UserWarning:lightning")
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: CodeExample, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    as_in_the_page = "\n" * example.start_line + example.source  # for the line in a traceback
    exec(compile(as_in_the_page, example.path, "exec"), {"__name__": "__main__"})


LAUNCHERS = (
    "torch.distributed.run --standalone --nproc-per-node 2",
    "accelerate.commands.launch --cpu --num_processes 2",
)


@pytest.mark.parametrize("launcher", thinned(LAUNCHERS, 2))
def test_the_example_of_several_processes_runs_in_several(launcher: str, tmp_path) -> None:
    (script,) = (
        example.source
        for example in find_examples(PAGES / "scale.md")
        if example.prefix == "python"
    )
    path = tmp_path / "several.py"
    path.write_text(script)
    command = [sys.executable, "-m", *launcher.split(), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def lines_of_shell(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]


def small(line: str, data: dict[str, Path]) -> str:
    """The command on a made data set, for one epoch, in two processes where it asks for several."""
    for name, path in data.items():
        line = line.replace(f"{name}:PATH", f"{name}:{path}")
    line = line.replace("--images PATH", f"--images {data['folder'] / 'test'}")
    line = re.sub(r"--nproc-per-node \d+", "--nproc-per-node 2", line)
    command, redirect, file = line.partition(" > ")
    if " train" in command and "--resume" not in command:
        command, pauses = re.subn(r"--pause_after \d+", "--pause_after 1", command)
        command += f" --epochs {1 + pauses} --batch_size 8 --image_size 48 --pretrained false"
        command += "" if "--data" in command else f" --data folder:{data['folder']}"
    return command + redirect + file


def run_here(command: str, capsys) -> int:
    """Exit code of an `unmuddle` command; importing everything anew each time would take minutes."""
    command, _, file = command.partition(" > ")
    try:
        code = main(shlex.split(command)[1:])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr().out
    if file:
        Path(file).write_text(out)
    return code


def run_several(command: str) -> int:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, *shlex.split(command)[1:]]
    return subprocess.run(command, env=environment, check=False, timeout=300).returncode


@pytest.fixture(autouse=True)
def _environment_is_put_back(monkeypatch) -> None:
    """Examples of several processes set variables, with a port that may be taken."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # noted, so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", port)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        "folder": layouts.make_folder(root / "folder", each=8),
        "ferplus": layouts.make_ferplus(root / "ferplus", each=8),
        "rafdb": layouts.make_rafdb(root / "rafdb"),
    }


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        PAGES / "uerm.md",
        pytest.param(PAGES / "recipe.md", marks=pytest.mark.slow),
    ],
    ids=lambda p: p.name,
)
def test_commands_run_from_the_top_of_a_page_to_its_bottom(
    page: Path, data, tmp_path, monkeypatch, capsys
) -> None:
    commands = [line for line in lines_of_shell(page) if line.startswith(COMMANDS)]
    assert len(commands) >= 3
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if "--labels" in command:  # what the reader saves from the audit, or a longer run changes
            suspects = (tmp_path / "runs/first/audit/suspects.csv").read_text()
            labels = tmp_path / command.partition("--labels ")[2].split()[0]
            labels.write_text(re.sub(r",,(\w{32}),", r",accept,\1,", suspects, count=1))
        command = small(command, data)
        code = run_here(command, capsys) if command.startswith("unmuddle") else run_several(command)
        assert code == 0, command


@pytest.mark.slow
def test_the_tutorial_of_labels_repairs_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (PAGES / "tutorials" / "labels.md").read_text()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, block in re.findall(r"```(python|sh)\n(.*?)```", page, re.DOTALL):
        command = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
        done = subprocess.run(
            [*command, block], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(PAGES.rglob("*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_targets_extras_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for extra in re.findall(r"pip install '(?:unmuddle|\.)\[(\w+)\]'", text):
        assert extra in metadata("unmuddle").get_all("Provides-Extra", [])
    for path in re.findall(r"\b((?:benchmarks|tests|src)/[\w/]+\.py)", text):
        assert (ROOT / path).exists(), path


def test_every_public_name_is_in_the_api_pages() -> None:
    import unmuddle
    from unmuddle import arm, supcon, testing, uerm

    lines = [
        line for page in (PAGES / "api").glob("*.md") for line in page.read_text().splitlines()
    ]
    documented = {line.split(".")[-1] for line in lines if line.startswith(":::")}
    public = {name for module in (unmuddle, arm, supcon, testing, uerm) for name in module.__all__}
    assert public <= documented
