"""The command line: exit codes, one clear line for a wrong input, nothing written."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.layouts import make_folder, truncate
from tests.helpers.processes import unmuddle
from tests.helpers.run_files import write_run
from unmuddle.cli import failure, main
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.presets import PRESETS


def run(arguments: list[str]) -> int:
    """`main`, with the exit code of argparse's own errors."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one_class() -> None:
    make_folder(Path("faces"))
    for part in ("train", "val", "test"):
        for image in (Path("faces") / part / "glad").iterdir():
            image.unlink()
        (Path("faces") / part / "glad").rmdir()


def truncated_image() -> None:
    make_folder(Path("faces"))
    truncate(Path("faces/test/calm/04.png"))


def label_out_of_range() -> None:
    for part in ("Train", "Valid", "Test"):
        folder = Path("faces") / f"FER2013{part}"
        folder.mkdir(parents=True)
        (folder / "label.csv").write_text('a.png,"(0, 0, 48, 48)",0,0,0,0,0,0,0,99,0,0\n')


def unknown_key() -> None:
    Path("config.yaml").write_text("epochs: 3\nlearning_speed: 1\n")


def null_epochs() -> None:
    Path("config.yaml").write_text("epochs: null\n")


def latin_config() -> None:
    Path("config.yaml").write_bytes("data: é".encode("latin-1"))


def pickle_that_runs_code() -> None:
    torch.save({"weight": torch.zeros(1), "hook": RunsCode()}, "w.pt")


def weights_of_another_network() -> None:
    torch.save(small_net().state_dict(), "w.pt")


def noise_by_names_that_repeat() -> None:
    make_folder(Path("faces"))
    Path("noise.csv").write_text("name,label\n00.png,calm\n")


def empty_folder() -> None:
    Path("empty").mkdir()


class RunsCode:
    def __reduce__(self):
        return Path.write_text, (Path("run"), "code")


def used_run() -> None:
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["--data", "imagenet"], "--data imagenet: unknown data set; expected one of"),
        (None, ["--data", "folder:nowhere"], "no such folder: nowhere"),
        (one_class, ["--data", "folder:faces"], "expected at least 2 class folders, got 1"),
        (truncated_image, ["--data", "folder:faces"], "unreadable or truncated image: 1"),
        (label_out_of_range, ["--data", "ferplus:faces"], "row without 10 votes, each from 0 to 10: 3"),
        (None, ["--data", "digits", "--backbone", "resnet1800"], "--backbone resnet1800: model: 'resnet1800' is known to neither timm nor torchvision; did you mean"),
        (unknown_key, ["--config", "config.yaml"], "learning_speed: cannot be set in a file"),
        (None, ["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (None, ["--epochs", "many"], "epochs"),
        (None, ["--config", "missing.yaml"], "missing.yaml"),
        (None, ["--parts", "supcon,resnet"], "unknown part 'resnet'"),
        (None, ["--parts", "arm,published_arm"], "choose one of arm and published_arm"),
        (None, ["--noise", "symmetric:2"], "expected none, file:PATH, symmetric:P or pair:P with 0 <= P <= 1"),
        (None, ["--precision", "fp8"], "precision"),
        (None, ["--lr", "0"], "--lr: expected more than 0, got 0"),
        (None, ["--warmup", "2"], "--warmup: expected a number from 0 to 1"),
        (None, ["--augment", "1.5"], "--augment: expected a number from 0 to 1, got 1.5"),
        (None, ["--batch_size", "1"], "--batch_size: expected at least 2"),
        (None, ["--pretrained", "true", "--weights", "w.pt"], "give one of the two"),
        (None, ["--data", "digits", "--weights", "w.pt"], "--weights w.pt: cannot be loaded"),
        (used_run, ["--data", "digits", "--out", "used"], "--out used: exists and is not an empty folder\n"),
        (None, ["--nonsense", "1"], "nonsense"),
        (None, ["--epochs", "two"], "argument --epochs: invalid int value: 'two'"),
        (None, ["--tracker", "wandb"], "argument --tracker: invalid choice: 'wandb' (choose from"),
        (None, ["--preset", "rafdb"], "--preset rafdb: needs --data rafdb:PATH"),
        (None, ["--data", "digits", "--precision", "fp16"], "--precision fp16: needs a GPU"),
        (used_run, ["--data", "used"], "did you mean folder:used?"),
        (None, ["--seed", "-1"], "--seed: expected 0 <= seed < 2**32, got -1"),
        (None, ["--out", "~nobody_here/x"], "--out '~nobody_here/x': not a usable path"),
        (null_epochs, ["--config", "config.yaml"], "epochs"),
        (latin_config, ["--config", "config.yaml"], "decode"),
        (None, ["--preset", "imagenet"], "--preset: invalid choice: 'imagenet'"),
        (None, ["--accumulate", "0"], "--accumulate: expected at least 1, got 0"),
        (None, ["--workers", "-1"], "--workers: expected at least 0, got -1"),
        (None, ["--image_size", "4"], "--image_size: expected at least 8, got 4"),
        (None, ["--temperature", "0"], "--temperature: expected more than 0, got 0"),
        (None, ["--weight_decay", "-1"], "--weight_decay: expected at least 0, got -1"),
        (None, ["--views", "0"], "--views: expected at least 1, got 0"),
        (None, ["--data", "digits", "--targets", "votes", "--parts", "arm"], "digits has no votes"),
        (None, ["--targets", "votes", "--parts", "uerm"], "leave out uerm, --noise and --labels"),
        (None, ["--targets", "votes", "--noise", "pair:0.1"], "leave out uerm, --noise and --labels"),
        (
            None,
            ["--relabel_loss", "corrected", "--label_smoothing", "0.1"],
            "--relabel_loss corrected: cannot be combined with --label_smoothing",
        ),
        (
            None,
            ["--targets", "votes", "--parts", "arm", "--labels", "l.csv"],
            "leave out uerm, --noise and --labels",
        ),
        (None, ["--supcon_weight", "-1"], "--supcon_weight: expected at least 0, got -1"),
        (None, ["--average", "1"], "--average: expected 0 <= average < 1, got 1"),
        (None, ["--compile", "maybe"], "argument --compile: expected true or false, got maybe"),
        (None, ["--data", "synthetic:0"], "--data synthetic:0: unknown data set; expected one of synthetic, synthetic:N"),
        (None, ["--data", "rafdb"], "--data rafdb: expected rafdb:PATH"),
        (empty_folder, ["--data", "rafdb:empty"], "empty"),
        (empty_folder, ["--data", "affectnet:empty"], "empty"),
        (empty_folder, ["--data", "fer2013:empty"], "fer2013.csv"),
        (empty_folder, ["--data", "ferplus:empty"], "FER2013Train"),
        (empty_folder, ["--data", "folder:empty"], "empty: expected at least 2 class folders, got 0"),
        (None, ["--noise", "pair:much"], "expected none, file:PATH, symmetric:P or pair:P"),
        (None, ["--data", "digits", "--noise", "file:no.csv"], "no.csv"),
        (noise_by_names_that_repeat, ["--data", "folder:faces", "--noise", "file:noise.csv"], "name of several images; give the folder too: 1"),
        (None, ["--data", "digits", "--labels", "no.csv"], "--labels no.csv"),
        (None, ["--data", "digits", "--backbone", "nowhere:net"], "--backbone nowhere:net: ModuleNotFoundError"),
        (None, ["--data", "digits", "--backbone", "math:pi"], "--backbone math:pi: TypeError"),
        (None, ["--data", "digits", "--backbone", "vit_tiny_patch16_224"], "--backbone vit_tiny_patch16_224"),
        (pickle_that_runs_code, ["--data", "digits", "--weights", "w.pt"], "more than tensors, which would run code of its own"),
        (weights_of_another_network, ["--data", "digits", "--weights", "w.pt"], "--weights w.pt: lacks"),
        (None, ["--resume", "nowhere"], "--resume nowhere: is not there"),
        (lambda: make_folder(Path("faces")), ["--data", "folder:faces", "--out", "faces/r"], "--out faces/r: is in the folder of --data folder:faces"),
        (None, ["--data", "folder:~nobody_here/x"], "--data '~nobody_here/x': not a usable path"),
        (None, ["--prese", "rafdb", "--data", "digits"], "unrecognized arguments: --prese"),
    ],
)  # fmt: skip
def test_wrong_input_ends_with_2_and_its_own_message(
    prepare, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if prepare:
        prepare()
    before = sorted(Path().rglob("*"))
    assert run(["train", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.out + shown.err
    assert sorted(Path().rglob("*")) == before, "something was written"
    assert shown.err.startswith("unmuddle"), "the message comes first"
    assert "\n" not in shown.err.strip().replace("\n  ", ""), "one line, or a list of problems"


def test_a_backbone_of_the_current_folder_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_network.py").write_text("def make():\n    return 1 / 0\n")
    assert run(["train", "--data", "digits", "--backbone", "my_network:make"]) == 2
    assert "--backbone my_network:make: ZeroDivisionError" in capsys.readouterr().err


def test_no_command_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert run(["--help"]) == 0
    assert run(["train", "--help"]) == 0
    assert "peak learning rate of AdamW" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "audit", "export", "report", "doctor", "laws"]
)
def test_help_fits_a_screen_and_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 55
    assert max(map(len, lines)) <= 120
    assert any(line.startswith(f"  unmuddle {command} ") for line in lines)
    if command == "train":
        for field in dataclasses.fields(TrainConfig):
            assert any(line.startswith(f"  --{field.name} ") for line in lines)


@pytest.mark.parametrize("preset", ["rafdb", "ferplus", "affectnet"])
def test_presets_are_read_before_every_other_option(
    preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text("epochs: 3\n")
    options = ["--epochs", "7", "--preset", preset, "--config", "mine.yaml", "--lr", "0.5"]
    assert run(["train", *options, "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["backbone"], found["image_size"]) == ("resnet18", 224)
    assert (found["epochs"], found["lr"]) == (3, 0.5)
    text = PRESETS[preset].read_text()
    values = [line for line in text.splitlines() if line[:1].isalpha()]
    assert all("# " in line for line in values), "each value has its source"
    TrainConfig(**yaml.safe_load(text)).check()


def test_a_quiet_run_says_where_it_is_and_writes_for_tensorboard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--quiet", "--tracker", "tensorboard", "--out", "r", "--data", "digits"]
    options += ["--epochs", "2", "--backbone", "tests.cli.test_cli:small_net", "--parts", "none"]
    assert run(["train", *options]) == 0
    assert capsys.readouterr().out == "r\n"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator("r/tensorboard").Reload()
    lines = Path("r/metrics.jsonl").read_text().splitlines()
    for event, line in zip(written.Scalars("val_accuracy"), lines, strict=True):
        entry = json.loads(line)
        assert (event.step, event.value) == (entry["epoch"], pytest.approx(entry["val_accuracy"]))


def test_what_is_printed_is_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    data = f"folder:{make_folder(Path('100'))}"
    options = ["--data", data, "--epochs", "1", "--parts", "none", "--out", "[bold]r"]
    assert run(["train", *options, "--backbone", "tests.cli.test_cli:small_net"]) == 0
    printed = capsys.readouterr().out
    assert "folder:100: " in printed  # no picture of a hundred points
    assert "run folder [bold]r" in printed


def test_printed_config_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--epochs", "7", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["epochs"] == 7
    Path("again.yaml").write_text(printed)
    assert run(["train", "--config", "again.yaml", "--lr", "3e-3", "--print_config"]) == 0
    again = yaml.safe_load(capsys.readouterr().out)
    assert (again["epochs"], again["lr"]) == (7, 3e-3)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("out: 0123", "out", "0123"),
        ("out: 12:30", "out", "12:30"),
        ("out: yes", "out", "yes"),
        ("seed: 010", "seed", 10),
        ("precision: no", "precision", "no"),
        ("lr: 1e-3", "lr", 1e-3),
        ("pretrained: true", "pretrained", True),
        ("image-size: 96", "image_size", 96),
        ("image_size: null", "image_size", None),
    ],
)
def test_a_file_of_options_says_what_is_written(text: str, name: str, expected, capsys) -> None:
    Path("mine.yaml").write_text(text + "\n")
    assert run(["train", "--preset", "rafdb", "--config", "mine.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[name] == expected


@pytest.mark.parametrize(
    "text", ["config: mine.yaml", "lables: null", "null: null", "quiet: true", "parts: [supcon]", "- a", "resume: r"]
)  # fmt: skip
def test_a_file_of_other_things_is_refused(text: str, capsys) -> None:
    Path("mine.yaml").write_text(text + "\n")
    assert run(["train", "--config", "mine.yaml", "--print_config"]) == 2
    shown = capsys.readouterr()
    assert "--config mine.yaml" in shown.err
    assert not shown.out


def small_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.BatchNorm2d(8))


def test_train_and_report_in_half_precision(tmp_path: Path) -> None:
    options = f"--data folder:{make_folder(Path('faces'))} --noise symmetric:0.2 --image_size 32"
    options += " --epochs 1 --precision bf16 --backbone tests.helpers.networks:tiny --out r"
    trained = unmuddle(["train", *options.split()], Path("log"))  # a process has one precision
    trained.join()
    assert trained.exitcode == 0, Path("log").read_text()
    assert "relabel precision" in Path("log").read_text()
    names = {path.name for path in Path("r").iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "samples.csv", "ledger.csv", "model.safetensors",
        "last.safetensors", "relabeled.csv", "report.html", "samples.png", "snapshot.safetensors", "summary.json", "uerm.safetensors",
    }  # fmt: skip
    for out, arguments in (("r/report.html", []), ("page.html", ["--out", "page.html"])):
        Path(out).unlink(missing_ok=True)
        assert run(["report", "r", *arguments]) == 0
        assert Path(out).read_text().startswith("<!doctype html>")
    shutil.copytree("r", "r2")
    assert run(["report", "r", "r2"]) == 0
    assert Path("report.html").exists()


def test_report_of_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert run(["report", "empty"]) == 2
    assert "empty: holds no run" in capsys.readouterr().err
    assert run(["report"]) == 2
    assert run(["report", "empty", "--out", "nowhere/page.html"]) == 2
    assert (
        "--out: nowhere/page.html: expected a file in a folder that is there"
        in capsys.readouterr().err
    )


def test_a_quiet_run_writes_as_much_and_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(Path("faces"))
    arguments = ["train", "--data", "folder:faces", "--image_size", "32", "--out", "r", "--quiet"]
    assert run([*arguments, "--epochs", "1", "--backbone", "tests.cli.test_cli:small_net"]) == 0
    assert capsys.readouterr().out == "r\n"
    assert Path("r/report.html").exists()
    modes = {path.name: path.stat().st_mode for path in Path("r").iterdir()}
    assert set(modes.values()) == {modes["config.yaml"]}, modes
    assert b"\r" not in Path("r/samples.csv").read_bytes() + Path("r/ledger.csv").read_bytes()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run(["evaluate", "--run", "../r"]) == 0
    assert run(["train", "--resume", "../r"]) == 0
    assert "--resume ../r: has ended already" in capsys.readouterr().out


def test_the_paths_of_a_run_hold_in_any_folder() -> None:
    here = Path().absolute()
    config = TrainConfig(
        data="folder:a", noise="file:b.csv", labels="c.csv", weights="d.pt"
    ).anywhere()
    assert (config.data, config.noise) == (f"folder:{here}/a", f"file:{here}/b.csv")
    assert (config.labels, config.weights) == (f"{here}/c.csv", f"{here}/d.pt")
    for data, noise in (
        ("synthetic:5", "symmetric:0.2"),
        ("digits", "pair:.1"),
        ("synthetic", "none"),
    ):
        config = TrainConfig(data=data, noise=noise)
        assert config.anywhere() == config


def test_a_report_takes_no_other_pages_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.html").write_text("<p>mine")
    (write_run(Path("r")) / "report.html").write_bytes(b"\xff\xfe")
    for arguments in (["--out", "mine.html"], []):
        assert run(["report", "r", *arguments]) == 2
        assert "exists and is not a page of unmuddle" in capsys.readouterr().err
    assert Path("mine.html").read_text() == "<p>mine"


def test_names_with_markup_and_maths_in_them_are_shown_as_they_are() -> None:
    make_folder(Path("a$b_$[x]"))
    arguments = ["train", "--data", "folder:a$b_$[x]", "--image_size", "32", "--out", "r[b]"]
    assert run([*arguments, "--epochs", "1", "--backbone", "tests.cli.test_cli:small_net"]) == 0


def test_a_diverged_run_says_so_and_keeps_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--data", "digits", "--epochs", "2", "--lr", "1e30", "--out", "r"]
    assert run([*arguments, "--backbone", "tests.cli.test_cli:small_net", "--parts", "none"]) == 1
    assert "the loss is not finite; try a lower --lr" in capsys.readouterr().out
    assert '"diverged"' in Path("r/summary.json").read_text()


def test_a_clone_on_the_path_runs_without_being_installed() -> None:
    code = (
        "from importlib import metadata\n"
        "found = metadata.version\n"
        "def version(name):\n"
        "    if name == 'unmuddle': raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.version = version\n"
        "import unmuddle.cli; unmuddle.cli.main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "unmuddle 0+not.installed\n")


def test_a_killed_loader_is_told_however_it_shows() -> None:
    for error in (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ConnectionResetError(104, "Connection reset by peer"),
    ):
        assert failure(error).startswith("a process that loads images has ended: ")
    assert failure(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert failure(RuntimeError("shapes do not fit")) is None
