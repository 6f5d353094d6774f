"""From a run to a page of suspect labels, from its file back into training."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageOps

from tests.helpers.layouts import make_folder
from unmuddle.cli import main
from unmuddle.recipe.audit import audit
from unmuddle.recipe.audit import training as training_part
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import load_data
from unmuddle.recipe.data.noise import add_noise
from unmuddle.recipe.decisions import Row, write_rows
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.train import train
from unmuddle.recipe.trained import load_split, load_trained
from unmuddle.uerm import gather_evidence

SMALL = {"backbone": "small", "epochs": 2, "image_size": 16, "batch_size": 8, "warmup": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"folder:{make_folder(tmp_path_factory.mktemp('faces'))}"


@pytest.fixture(scope="module", params=["uerm", "none"])
def run(
    data: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    path = tmp_path_factory.mktemp("audit") / "run"
    return train(
        TrainConfig(data=data, noise="symmetric:0.3", parts=request.param, out=str(path), **SMALL)
    )


def test_suspects_are_ranked_and_say_why(run: Path) -> None:
    suspects, _ = audit(None, run)
    assert suspects
    wrong = [s.wrong for s in suspects]
    assert wrong == sorted(wrong, reverse=True)
    assert 0 < min(wrong) <= max(wrong) <= 1
    with (run / "samples.csv").open() as file:
        samples = {int(row["sample"]): row for row in csv.DictReader(file)}
    assert {s.row.split for s in suspects} == {"train", "val", "test"}
    for s in suspects:
        if s.row.split != "train":
            continue
        assert s.row.label == samples[s.row.sample]["label_name"] != s.row.suggested
        assert s.row.source == samples[s.row.sample]["source"]
        assert f"wrong with probability {s.wrong:.0%}: predicted as {s.row.suggested} (" in s.why
    assert len(audit(None, run, limit=1)[0]) == 1


def test_labels_are_drawn_from_the_doubtful_half(run: Path) -> None:
    everything = [s.row.sample for s in audit(None, run, limit=10**6)[0] if s.row.split == "train"]
    half = set(everything[: -(-len(everything) // 2)])
    drawn = [s.row.sample for s in audit(None, run, limit=5, draw=True)[0]]
    assert len(set(drawn)) == 5
    assert set(drawn) < half
    assert drawn != everything[:5]
    assert drawn == [s.row.sample for s in audit(None, run, limit=5, draw=True)[0]]


def test_probabilities_of_another_tool_are_audited(run: Path, tmp_path: Path, capsys) -> None:
    labels = safetensors.torch.load_file(run / "uerm.safetensors")["ledger.original_labels"]
    classes = int(labels.max()) + 1
    p = torch.nn.functional.one_hot(labels, classes).double() * 0.8 + 0.2 / classes
    p[3] = p[3].roll(1)  # contradicts its label
    path = tmp_path / "pred_probs.npy"
    p[4] = 0  # not predicted
    np.save(path, p.numpy())
    suspects, _ = audit(None, run, limit=10**6, pred_probs=path)
    assert len(suspects) == len(p) - 1
    assert 4 not in {s.row.sample for s in suspects}
    assert suspects[0].row.sample == 3
    for broken, message in (
        (p[:-1], rf"expected floats \(n, K\) = \({len(p)}, {classes}\), got float64 "),
        (p.long(), "expected floats .*, got int64"),
        (p.to(torch.complex64), "expected floats .*, got complex64"),
        (p * 2, "add up to 1 in each row, got .* in row 0"),
        (torch.cat([p[:5], torch.eye(classes)[:1] * 2 - 1 / classes, p[6:]]), "in row 5"),
        (p * torch.nan, r"got \[nan, .* in row 0"),
    ):
        np.save(path, broken.numpy())
        with pytest.raises(UsageError, match=message):
            audit(None, run, pred_probs=path)
    np.savez(tmp_path / "two.npz", a=p.numpy())
    with pytest.raises(UsageError, match="NpzFile"):
        audit(None, run, pred_probs=tmp_path / "two.npz")
    for content in (b"no array", b"", b"PK no zip"):
        path.write_bytes(content)
        assert main(["audit", "--run", str(run), "--pred_probs", str(path)]) == 2
        assert f"--pred_probs {path}: " in capsys.readouterr().err
    assert main(["audit", "--run", str(run), "--pred_probs", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_decisions_are_trained_on_and_left_alone(
    run: Path, data: str, tmp_path: Path, capsys
) -> None:
    assert main(["audit", "--run", str(run), "--out", str(tmp_path / "audit")]) == 0
    with (tmp_path / "audit" / "suspects.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    wrong = [float(r.pop("wrong")) for r in read]
    assert wrong == sorted(wrong, reverse=True)
    rows = [Row(int(r.pop("sample")), **r) for r in read]
    train_rows, test_rows = ([r for r in rows if r.split == name] for name in ("train", "test"))
    first, second, third = train_rows[0], train_rows[1], test_rows[0]
    decided = [
        first._replace(decision="ACCEPT"),
        second._replace(decision=" Reject "),
        third._replace(decision=f"to {third.suggested}"),
    ]
    write_rows(tmp_path / "labels.csv", [*decided, *train_rows[2:]])
    options = {"data": data, "noise": "symmetric:0.3", "parts": "uerm", **SMALL}
    again = train(
        TrainConfig(**options, out=str(tmp_path / "again"), labels=str(tmp_path / "labels.csv"))
    )
    (tmp_path / "labels.csv").unlink()
    assert ",test," in (again / "relabeled.csv").read_text()
    assert "labels.csv: 3 decisions (2 of train, 1 of test)" in capsys.readouterr().out.replace(
        "\n", ""
    )
    with (again / "ledger.csv").open() as file:
        events = [(int(e["sample"]), e["rule"]) for e in csv.DictReader(file)]
    answered = {first.sample, second.sample}
    assert events[:2] == [(first.sample, "decide"), (second.sample, "decide")]
    assert not {sample for sample, _ in events[2:]} & answered
    tested = load_split(load_trained(again), split="test")
    classes = load_trained(again).classes
    assert classes[int(tested.labels[third.sample])] == third.suggested

    # An audit of that run does not ask again, and learns from the answers.
    asked = {(s.row.split, s.row.sample) for s in audit(None, again)[0]}
    assert not asked & {row[1::-1] for row in (first, second, third)}
    splits = load_data(data, image_size=16)
    add_noise(splits.train, splits.classes, "symmetric:0.3", 0)
    part = training_part(RunFolder(again), splits, None)
    verified = torch.tensor([i in answered for i in range(len(part.given))])
    taught, untaught = (
        gather_evidence(part.evidence.predictions, part.given, 2, current=part.now, verified=v)
        for v in (verified, None)
    )
    assert torch.equal(part.evidence.uncertainty, taught.uncertainty)
    assert not torch.equal(taught.uncertainty, untaught.uncertainty)


def test_an_audit_does_not_write_over_decisions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["audit", "--run", str(run), "--out", str(tmp_path)]
    assert main(command) == main(command) == 0  # nothing decided yet
    path = tmp_path / "suspects.csv"
    write_rows(path, [s.row._replace(decision="accept") for s in audit(None, run)[0]])
    before = path.read_bytes()
    assert main(command) == 2
    assert "decisions; give another --out" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_audit_does_not_write_over_decisions_of_a_spreadsheet(
    encoding: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "suspects.csv"
    write_rows(path, [s.row._replace(decision="accept") for s in audit(None, run)[0]])
    path.write_text(path.read_text().replace(",", ";"), encoding=encoding)
    before = path.read_bytes()
    assert main(["audit", "--run", str(run), "--out", str(tmp_path)]) == 2
    assert "give another --out, or move it" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_an_audit_does_not_write_over_a_page_of_somebody_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("<p>mine")
    assert main(["audit", "--run", str(run), "--out", str(tmp_path)]) == 2
    assert "index.html: exists and is not a page of unmuddle" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_run_that_has_seen_nothing_yet_has_no_clean_labels(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    state = safetensors.torch.load_file(copy / "uerm.safetensors")
    state["predictions.seen"].zero_()
    safetensors.torch.save_file(state, copy / "uerm.safetensors")
    with pytest.raises(UsageError, match="has no predictions of training samples$"):
        audit(None, copy)
    summary = json.loads((copy / "summary.json").read_text()) | {"status": "paused"}
    (copy / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UsageError, match="begin at the end of the warm-up; .*--resume"):
        audit(None, copy)


@pytest.mark.parametrize("name", ["ledger.current_labels", "ledger.rule_names", "predictions.seen"])
def test_a_state_that_lacks_something_is_named(name: str, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    state = safetensors.torch.load_file(copy / "uerm.safetensors")
    for broken in ({}, {name: state[name][:1]}):
        kept = {key: value for key, value in state.items() if key != name}
        if name == "ledger.rule_names" and broken:
            continue  # of any length
        safetensors.torch.save_file(kept | broken, copy / "uerm.safetensors")
        with pytest.raises(UsageError, match=r"uerm\.safetensors"):
            audit(None, copy)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("was trained on other images: 0 of its 0 are gone", "sample,source,label,true_label\n"),
        (
            "was trained on other images: 1 of its 1 are gone",
            "sample,source,label,true_label\n0,x.png,0,\n",
        ),
        ("samples.csv: is not readable", "sample,source,label,true_label\n0\n"),
    ],
)
def test_a_broken_list_of_samples_is_named(
    message: str, text: str, run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "samples.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        audit(None, copy)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (r"config\.yaml: is not readable", "epochs: many"),
        (r"config\.yaml: is not readable", "image_size: '16'"),
    ],
)
def test_options_of_another_type_are_named(
    message: str, line: str, run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(f"{text}{line}\n")  # the last one counts
    with pytest.raises(UsageError, match=message):
        audit(None, copy)


def test_images_in_another_order_are_refused(run: Path, data: str, tmp_path: Path) -> None:
    root = shutil.copytree(data.removeprefix("folder:"), tmp_path / "copy")
    audit(f"folder:{root}", run)  # the same images in another place will do
    (root / "train" / "calm" / "00.png").rename(root / "train" / "calm" / "05b.png")
    with pytest.raises(UsageError, match="was trained on other images: .* train again"):
        audit(f"folder:{root}", run)


def test_images_that_changed_since_the_run_are_left_out(run: Path, tmp_path: Path, capsys) -> None:
    faces = Path(RunFolder(run).config().data.removeprefix("folder:"))
    moved = Path(shutil.copytree(faces, tmp_path / "faces"))
    suspect = next(s for s in audit(None, run)[0] if s.row.split == "train")
    image = moved / Path(suspect.row.source).relative_to(faces)
    ImageOps.mirror(Image.open(image)).save(image)
    found = [s.row.sample for s in audit(f"folder:{moved}", run)[0] if s.row.split == "train"]
    assert suspect.row.sample not in found
    assert found
    told = capsys.readouterr().err
    assert f"training image, changed since the run began: 1\n    {image}" in told


def test_the_page_holds_every_card_and_nothing_from_outside(run: Path, tmp_path: Path) -> None:
    assert main(["audit", "--run", str(run), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    count = len(audit(None, run)[0])
    assert page.count("<article") == page.count("data:image/png;base64,") == count
    assert "http" not in page.replace("http-equiv", "")
    line = next(line for line in page.splitlines() if line.startswith("const title"))
    assert len(json.loads(line.partition(" rows = ")[2].rstrip(";"))) == count
