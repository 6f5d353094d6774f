"""From run files to a table and a page, without the recipe."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.run_files import write_run
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.report.report_page import report_page
from unmuddle.report.runs import read_runs, read_samples
from unmuddle.report.table import comparison_table


def printed(*paths: Path) -> list[list[str]]:
    console = Console(width=120, record=True, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        console.print(comparison_table(read_runs(paths)))
    lines = [line for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def page_of(*paths: Path) -> str:
    return report_page(read_runs(paths))


def titles(page: str) -> list[str]:
    """Of the plots; each has its picture."""
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert all(figure.count("<svg") == 1 for figure in figures)
    return [re.findall(r"<h3>(.*?)</h3>", figure)[0] for figure in figures]


def texts(page: str, title: str) -> list[str]:
    """Written in the plot of that title."""
    figure = re.findall(rf"<figure><h3>{title}</h3>.*?</figure>", page, re.DOTALL)[0]
    return re.findall(r"<text[^>]*>(.*?)</text>", figure)


def cells(page: str, title: str) -> dict[tuple[str, str], str]:
    """Numbers of a matrix by the names of their row and column, found by where they stand."""
    figure = re.findall(rf"<figure><h3>{title}</h3>.*?</figure>", page, re.DOTALL)[0]
    found = re.findall(
        r'<text[^>]* x="(\S+)" y="(\S+)" transform="rotate\((\S+) [^>]*>(.*?)</text>', figure
    )
    numbers = [(float(x), float(y), text) for x, y, _, text in found if text.isdigit()]
    names = [row for row in found if row[3] in ("a", "b$&lt;i&gt;")]
    rows = {name: float(y) for _, y, turn, name in names if turn == "-0"}
    columns = {name: float(x) for x, _, turn, name in names if turn == "-45"}
    assert list(rows) == sorted(rows, key=rows.get), "the first class is on top"

    def nearest(places: dict[str, float], at: float) -> str:
        return min(places, key=lambda name: abs(places[name] - at))

    return {(nearest(rows, y), nearest(columns, x)): text for x, y, text in numbers}


def test_table_shows_every_figure_and_a_dash_for_what_is_unknown(tmp_path: Path) -> None:
    rows = {
        row[0]: row[1:]
        for row in printed(
            write_run(tmp_path / "one"), write_run(tmp_path / "two", finished=False, truth=False)
        )
    }
    assert rows["its test accuracy"] == ["75.0%", "-"]
    assert rows["test samples"] == ["4", "-"]
    assert rows["labels right as given"] == ["50.0%", "-"]
    assert rows["labels right after relabeling"] == ["87.5%", "-"]
    assert rows["relabel precision"] == ["-", "-"]
    assert rows["relabel recall"] == ["12.5%", "-"]
    assert rows["status"] == ["finished", "interrupted"]
    assert rows["seconds"] == ["12", "12"]


def test_page_of_a_finished_run_has_every_plot(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert titles(page) == [
        "Training loss", "Accuracy", "Training labels right", "Test confusion", "Relabel flow",
        "Training labels as given", "Training labels after relabeling", "Uncertainty",
        "Map of the training samples",
    ]  # fmt: skip
    assert "3 of 20 training labels, counted." in page
    assert "given label wrong (2)" in page
    assert "90.0% are right" in page
    assert "85.0% are right" in page


def test_matrices_have_the_truth_in_rows(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    a, b = "a", "b$&lt;i&gt;"
    assert cells(page, "Test confusion") == {(a, a): "75", (a, b): "25"}
    # All 8 of true a were given as a, and 10 of 12 of true b as b.
    assert cells(page, "Training labels as given") == {(a, a): "100", (b, a): "17", (b, b): "83"}
    # Then one of true a became b, one wrong a became b, and one right b became a.
    assert cells(page, "Training labels after relabeling") == {
        (a, a): "88", (a, b): "12", (b, a): "17", (b, b): "83",
    }  # fmt: skip
    # What was reverted is not counted.
    assert cells(page, "Relabel flow") == {(a, b): "2", (b, a): "1"}


def test_uncertainty_is_of_the_label_that_was_replaced(tmp_path: Path) -> None:
    found = read_samples(RunFolder(write_run(tmp_path / "run")), 2).uncertainty
    expected = np.linspace(0, 1, 20)
    expected[[0, 16]] = 0.8, 0.9
    assert found == pytest.approx(expected)


def test_gallery_says_why_and_whether_rightly(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    cards = re.findall(
        r'<div class="card (\w+)">.*?<s>(.*?)</s> → <b>(.*?)</b>(.*?)<p class="why">(.*?)</p>',
        page,
        re.DOTALL,
    )
    assert [(right, given, new) for right, given, new, _, _ in cards] == [
        ("wrong", "a", "b$&lt;i&gt;"), ("right", "a", "b$&lt;i&gt;"), ("wrong", "b$&lt;i&gt;", "a"),
    ]  # fmt: skip
    assert cards[0][3].strip() == "(true: a)"
    assert cards[1][4] == "epoch 1, by bayes: margin 0.75, above 0.50; uncertainty 0.90"
    assert cards[2][4] == "epoch 2, by decide"
    assert page.count("data:image/png;base64,") == 3


def test_page_of_a_run_without_truth_or_end(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", finished=False, truth=False))
    assert titles(page) == ["Training loss", "Accuracy", "Relabel flow", "Uncertainty"]
    assert "label changed (3)" in page
    assert "Relabeled images" not in page


def test_page_before_the_first_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False, truth=False)
    (run / "metrics.jsonl").write_text("")
    assert "No epoch was finished." in page_of(run)


def test_page_of_several_runs_says_where_their_options_differ(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", truth=False)]
    for run, lr in zip(runs, (0.1, 0.2), strict=True):
        (run / "config.yaml").write_text(
            f"lr: {lr}\nout: {run.name}\ncompile: false\nlabels: null\n"
        )
    page = page_of(*runs)
    assert page.count("<h2>") == 2
    assert re.findall(r'<th scope="col"><span class="key" style="background: (.*?)"></span>(.*?)</th>', page)[:2] == [
        ("#3d8fe0", "one"), ("#e8852d", "two"),
    ]  # fmt: skip
    assert "stroke: #3d8fe0" in page
    assert "stroke: #e8852d" in page
    differing = re.findall(r'<tr class="differs"><th scope="row">(.*?)</th>(.*?)</tr>', page)
    assert differing == [("lr", "<td>0.1</td><td>0.2</td>")]


def test_the_page_is_the_same_every_time_and_does_not_mark_up_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = page_of(run)
    assert page == page_of(run)
    assert "b$<i>" not in page
    assert "b$&lt;i&gt;" in texts(page, "Test confusion")


def test_names_in_any_script_are_left_to_the_browser(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"classes": ["表情", "b"]}))
    assert "表情" in texts(page_of(run), "Test confusion")


def test_many_classes_are_drawn_without_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["classes"] = [f"c{i}" for i in range(50)]
    summary["test"]["confusion"] = np.eye(50, dtype=int).tolist()
    (run / "summary.json").write_text(json.dumps(summary))
    assert texts(page_of(run), "Test confusion") == ["predicted", "true"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "of another kind"])
@pytest.mark.parametrize(
    "name", ["samples.csv", "uerm.safetensors", "snapshot.safetensors", "config.yaml"]
)
def test_unreadable_files_are_told(tmp_path: Path, name: str, damage: str) -> None:
    file = write_run(tmp_path / "run") / name
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.write_bytes(b"\xff\xfe\x00\n1,2\n")
    # A run that was interrupted has no snapshot; YAML cut short is YAML.
    if (name, damage) in (("snapshot.safetensors", "missing"), ("config.yaml", "truncated")):
        assert page_of(file.parent)
        return
    if (name, damage) == ("config.yaml", "missing"):
        expected = "run: holds no run"
    else:
        expected = f"run/{name}: is not readable: "
    with pytest.raises(ValueError, match=expected):
        page_of(file.parent)


def test_unreadable_runs_are_told(tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(ValueError, match=str(path)) as caught:
            read_runs([path])
        return str(caught.value)

    assert told(tmp_path) == f"{tmp_path}: holds no run: no config.yaml"
    assert told(tmp_path / "run") == f"{tmp_path / 'run'}: is not there"
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("{")
    assert "metrics.jsonl: is not readable: Expecting" in told(run)
    (run / "metrics.jsonl").write_text("")
    (run / "summary.json").write_text("{}")
    assert "summary.json: is not readable: lacks status, data" in told(run)
    (run / "summary.json").unlink()
    assert told(run) == f"{run}: was stopped; unmuddle train --resume {run} goes on"


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    paths = [write_run(tmp_path / name) for name in ("a/run", "b/run", "a/other")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run", "a/other"]
    assert [run.name for run in read_runs(paths[::2])] == ["run", "other"]


def test_figures_of_relabeling_are_of_runs_that_relabel(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"parts": "supcon"}))
    rows = {row[0]: row[1:] for row in printed(run)}
    assert rows["labels right as given"] == ["50.0%"]
    assert rows["labels right after relabeling"] == rows["relabel recall"] == ["-"]
