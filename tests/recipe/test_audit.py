"""From a run to a page of suspect labels, from its file back into training."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from layouts import make_folder
from unmuddle.cli import main
from unmuddle.recipe.audit import audit
from unmuddle.recipe.config import TrainConfig
from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.decisions import Row, read_decisions, rows_of, write_rows
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.train import train
from unmuddle.uerm import LabelLedger, gather_evidence

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
    suspects = audit(None, run)
    assert suspects
    wrong = [s.wrong for s in suspects]
    assert wrong == sorted(wrong, reverse=True)
    assert all(0 < s.confidence <= s.wrong + 1e-6 <= 1 + 1e-6 for s in suspects)
    with (run / "samples.csv").open() as file:
        samples = {int(row["sample"]): row for row in csv.DictReader(file)}
    for s in suspects:
        assert s.row.label == samples[s.row.sample]["label_name"] != s.row.suggested
        assert s.row.source == samples[s.row.sample]["source"]
        assert f"wrong with probability {s.wrong:.2f}: predicted as {s.row.suggested}" in s.why
    assert len(audit(None, run, limit=1)) == 1


def test_labels_are_drawn_from_the_doubtful_half(run: Path) -> None:
    everything = [s.row.sample for s in audit(None, run, limit=10**6)]
    half = set(everything[: -(-len(everything) // 2)])
    drawn = [s.row.sample for s in audit(None, run, limit=5, draw=True)]
    assert len(set(drawn)) == 5
    assert set(drawn) < half
    assert drawn != everything[:5]
    assert drawn == [s.row.sample for s in audit(None, run, limit=5, draw=True)]


def test_probabilities_of_another_tool_are_audited(run: Path, tmp_path: Path, capsys) -> None:
    labels = safetensors.torch.load_file(run / "uerm.safetensors")["ledger.original_labels"]
    classes = int(labels.max()) + 1
    p = torch.nn.functional.one_hot(labels, classes).double() * 0.8 + 0.2 / classes
    p[3] = p[3].roll(1)  # contradicts its label
    path = tmp_path / "pred_probs.npy"
    p[4] = 0  # not predicted
    np.save(path, p.numpy())
    suspects = audit(None, run, limit=10**6, pred_probs=path)
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
    with pytest.raises(UsageError, match="got an archive"):
        audit(None, run, pred_probs=tmp_path / "two.npz")
    for content in (b"no array", b"", b"PK no zip"):
        path.write_bytes(content)
        assert main(["audit", "--run", str(run), "--pred_probs", str(path)]) == 2
        assert "not an array that numpy.save wrote" in capsys.readouterr().err
    assert main(["audit", "--run", str(run), "--pred_probs", str(tmp_path)]) == 2
    assert "not readable" in capsys.readouterr().err


def test_decisions_are_trained_on_and_left_alone(
    run: Path, data: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    assert main(["audit", "--run", str(run), "--out", str(tmp_path / "audit")]) == 0
    with (tmp_path / "audit" / "suspects.csv").open(newline="") as file:
        rows = [Row(int(r.pop("sample")), **r) for r in csv.DictReader(file)]
    assert len(rows) >= 2
    decided = [
        rows[0]._replace(decision="ACCEPT"),
        rows[1]._replace(decision=" Reject "),
        *rows[2:],
    ]
    write_rows(tmp_path / "labels.csv", decided)
    again = train(
        TrainConfig(
            data=data, noise="symmetric:0.3", parts="uerm", out=str(tmp_path / "again"),
            labels=str(tmp_path / "labels.csv"), **SMALL,
        )
    )  # fmt: skip
    assert "labels.csv: 2 decisions" in capsys.readouterr().out.replace("\n", "")
    with (again / "ledger.csv").open() as file:
        events = [(int(e["sample"]), e["rule"]) for e in csv.DictReader(file)]
    assert events[:2] == [(rows[0].sample, "decide"), (rows[1].sample, "decide")]
    later = {sample for sample, rule in events[2:]}
    assert not later & {rows[0].sample, rows[1].sample}
    # An audit of that run does not ask again, and learns from the answers.
    taught = []
    monkeypatch.setattr(
        "unmuddle.recipe.audit.gather_evidence",
        lambda *a, **k: taught.append(k["verified"]) or gather_evidence(*a, **k),
    )
    assert not {s.row.sample for s in audit(None, again)} & {rows[0].sample, rows[1].sample}
    assert set(taught[0].nonzero()[:, 0].tolist()) == {rows[0].sample, rows[1].sample}


def test_an_audit_does_not_write_over_decisions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["audit", "--run", str(run), "--out", str(tmp_path)]
    assert main(command) == main(command) == 0  # nothing decided yet
    path = tmp_path / "suspects.csv"
    write_rows(path, [s.row._replace(decision="accept") for s in audit(None, run)])
    before = path.read_bytes()
    assert main(command) == 2
    assert "decisions; give another --out" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_audit_does_not_write_over_decisions_of_a_spreadsheet(
    encoding: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "suspects.csv"
    write_rows(path, [s.row._replace(decision="accept") for s in audit(None, run)])
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
    with pytest.raises(UsageError, match="has no predictions of training samples yet"):
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
        with pytest.raises(UsageError, match=r"no readable uerm\.safetensors"):
            audit(None, copy)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("was trained on other images: 0, here are", "sample,source\n"),
        ("was trained on other images: 1, here are", "sample,source\n0,x.png\n"),
        ("no readable samples.csv", "sample,source\n0\n"),
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
        (r"config\.yaml is not readable", "epochs: many"),
        (r"config\.yaml is not readable", "image_size: '16'"),
        ("--data: expected text, got 5", "data: 5"),
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
    with pytest.raises(UsageError, match="was trained on other images: .* names differ"):
        audit(f"folder:{root}", run)


def test_the_page_holds_every_card_and_nothing_from_outside(run: Path, tmp_path: Path) -> None:
    assert main(["audit", "--run", str(run), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    count = len(audit(None, run))
    assert page.count("<article") == page.count("data:image/png;base64,") == count
    assert "http" not in page.replace("http-equiv", "")
    line = next(line for line in page.splitlines() if line.startswith("const title"))
    assert len(json.loads(line.partition(" rows = ")[2].rstrip(";"))) == count


def labeled() -> tuple[LabeledImages, tuple[str, ...]]:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    return LabeledImages(images, torch.tensor([0, 1, 0]), sources=["a", "b", "c"]), ("calm", "glad")


GOOD = [
    Row(0, "a", "calm", "glad", "accept"),
    Row(1, "b", "glad", "calm", "reject"),
    Row(2, "c", "calm", "glad", ""),
]


def test_relabeled_and_chosen_labels_are_read_back(tmp_path: Path) -> None:
    data, classes = labeled()
    ledger = LabelLedger(data.labels, len(classes))
    ledger.record(torch.tensor([0]), torch.tensor([1]), epoch=1, rule="bayes")
    ledger.decide(torch.tensor([1]), torch.tensor([1]))
    write_rows(tmp_path / "labels.csv", rows_of(ledger, data, classes))
    rows = [*rows_of(ledger, data, classes)]
    assert [(row.suggested, row.decision) for row in rows] == [("glad", "keep"), ("glad", "accept")]
    found = read_decisions(tmp_path / "labels.csv", data, classes)
    assert [column.tolist() for column in found] == [[0, 1], [1, 1], [False, True]]
    again = LabelLedger(data.labels, len(classes))
    found.enter(again)
    assert torch.equal(again.current_labels, ledger.current_labels)
    assert again.fixed().tolist() == [True, True, False]
    assert again.human_verified().tolist() == [False, True, False]


def test_accepted_and_rejected_rows_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "labels.csv", GOOD)
    found = read_decisions(tmp_path / "labels.csv", *labeled())
    assert [column.tolist() for column in found] == [[0, 1], [1, 1], [True, True]]


def test_the_data_may_have_moved(tmp_path: Path) -> None:
    elsewhere = [row._replace(source=f"/elsewhere/{row.source}") for row in GOOD]
    write_rows(tmp_path / "labels.csv", elsewhere)
    found = read_decisions(tmp_path / "labels.csv", *labeled())
    assert [column.tolist() for column in found] == [[0, 1], [1, 1], [True, True]]


def test_blank_lines_count(tmp_path: Path) -> None:
    write_rows(tmp_path / "labels.csv", [GOOD[0]._replace(suggested="sad")])
    header, row = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text(f"{header}\n\n\n{row}\n")
    with pytest.raises(UsageError, match="line 4: suggested 'sad'"):
        read_decisions(tmp_path / "labels.csv", *labeled())


def test_a_run_that_changed_nothing_leaves_nothing_to_decide(tmp_path: Path) -> None:
    data, classes = labeled()
    write_rows(tmp_path / "labels.csv", rows_of(LabelLedger(data.labels, 2), data, classes))
    found = read_decisions(tmp_path / "labels.csv", data, classes)
    found.enter(LabelLedger(data.labels, 2))
    assert [*map(len, found)] == [0, 0, 0]


def test_a_spreadsheet_may_separate_by_semicolons(tmp_path: Path) -> None:
    write_rows(tmp_path / "labels.csv", GOOD)
    comma = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text("\ufeff" + comma.replace(",", ";"), encoding="utf-8")
    found = read_decisions(tmp_path / "labels.csv", *labeled())
    assert [column.tolist() for column in found] == [[0, 1], [1, 1], [True, True]]


@pytest.mark.parametrize(
    ("message", "found", "row"),
    [
        ("sample that is not a number below 3: 1", "sample '3'", GOOD[0]._replace(sample=3)),
        ("sample that is not a number below 3: 1", "sample 'x'", GOOD[0]._replace(sample="x")),
        ("sample that is not a number below 3: 1", "sample '-1'", GOOD[0]._replace(sample=-1)),
        ("sample that is not a number below 3: 1", "sample '999", GOOD[0]._replace(sample="9" * 5000)),
        ("source that is another image", "source 'z'", GOOD[0]._replace(source="z")),
        ("source that is another image", r"source 'a\x00'", GOOD[0]._replace(source="a\0")),
        ("label that is another one here; give the run's own --data, --noise and --seed", "label 'glad'", GOOD[0]._replace(label="glad")),
        ("suggested label that is none of calm", "suggested 'sad'", GOOD[0]._replace(suggested="sad")),
        ("decision that is none of accept", "decision 'yes'", GOOD[0]._replace(decision="yes")),
        ("decided twice: 1", "sample 1", GOOD[1]),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_named(message: str, found: str, row: Row, tmp_path: Path) -> None:
    write_rows(tmp_path / "labels.csv", [*GOOD[1:], row])
    with pytest.raises(UsageError, match=message) as error:
        read_decisions(tmp_path / "labels.csv", *labeled())
    assert f"line 4: {found}" in str(error.value)


def test_files_that_are_no_decisions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with pytest.raises(UsageError, match="not readable"):
        read_decisions(path, *labeled())
    path.write_text("sample,source\n1,a\n")
    expected = "lacks the columns label, suggested, decision; its first row holds sample, source"
    with pytest.raises(UsageError, match=expected):
        read_decisions(path, *labeled())
    path.write_text("")
    with pytest.raises(UsageError, match="its first row holds nothing"):
        read_decisions(path, *labeled())
    path.write_text("sample,source,label,suggested,decision\n1,b,glad\n")
    with pytest.raises(UsageError, match="row of another length than the header"):
        read_decisions(path, *labeled())
    write_rows(path, GOOD[2:])
    with pytest.raises(UsageError, match="no row says accept, reject or keep"):
        read_decisions(path, *labeled())
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not readable"):
        read_decisions(path, *labeled())


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--run {tmp}: holds no run: no config.yaml", ["--run", "{tmp}"]),
        ("--limit: expected at least 1, got 0", ["--run", "{run}", "--limit", "0"]),
        ("--run {run}: was trained on other images", ["--run", "{run}", "--data", "digits"]),
        ("--out {run}/config.yaml", ["--run", "{run}", "--out", "{run}/config.yaml"]),
        ("unknown data set", ["--run", "{run}", "--data", "nothing"]),
    ],
)
def test_wrong_input_of_audit(
    message: str,
    arguments: list[str],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"run": str(run), "tmp": str(tmp_path)}
    assert main(["audit", *(a.format(**names) for a in arguments)]) == 2
    assert message.format(**names) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
