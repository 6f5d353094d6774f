"""From run files to tables and plots, without the recipe."""

import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from unmuddle.report import comparison_table, draw_plots, read_run


def write_run(path: Path, *, finished: bool = True, truth: bool = True) -> Path:
    path.mkdir()
    entry = {"train_loss": 2.0, "train_accuracy": 0.5, "val_accuracy": 0.25, "labels_right": None}
    lines = [entry | {"epoch": e} | ({"labels_right": 0.75} if truth else {}) for e in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "status": "finished" if finished else "interrupted",
        "data": "digits", "noise": "none", "parts": "uerm", "backbone": "small",
        "classes": ["a", "b"], "best_epoch": 2, "seconds": 12.3,
    }  # fmt: skip
    if finished:
        confusion = [[3, 1], [0, 0]]
        summary["test"] = {"accuracy": 0.75, "mean_class_accuracy": 0.75, "confusion": confusion}
    if truth:
        summary["relabeling"] = {
            "right_before": 0.5, "right_after": 0.875, "precision": None, "recall": 0.125,
        }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def printed(*paths: Path) -> list[list[str]]:
    console = Console(width=120, record=True, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        console.print(comparison_table([read_run(path) for path in paths]))
    lines = [line for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_table_shows_every_figure_and_a_dash_for_what_is_unknown(tmp_path: Path) -> None:
    rows = {
        row[0]: row[1:]
        for row in printed(
            write_run(tmp_path / "one"), write_run(tmp_path / "two", finished=False, truth=False)
        )
    }
    assert rows["test accuracy"] == ["75.0%", "-"]
    assert rows["labels right before"] == ["50.0%", "-"]
    assert rows["labels right after"] == ["87.5%", "-"]
    assert rows["relabel precision"] == ["-", "-"]
    assert rows["relabel recall"] == ["12.5%", "-"]
    assert rows["status"] == ["finished", "interrupted"]
    assert rows["seconds"] == ["12", "12"]


@pytest.mark.parametrize("truth", [True, False])
def test_plots_of_a_finished_run(tmp_path: Path, truth: bool) -> None:
    drawn = draw_plots(read_run(write_run(tmp_path / "run", truth=truth)))
    assert [path.name for path in drawn] == ["curves.png", "confusion.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50, "an empty picture"


def test_an_interrupted_run_has_curves_and_no_confusion(tmp_path: Path) -> None:
    drawn = draw_plots(read_run(write_run(tmp_path / "run", finished=False)))
    assert [path.name for path in drawn] == ["curves.png"]


def test_unreadable_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run that has ended"):
        read_run(tmp_path)
    (write_run(tmp_path / "run") / "metrics.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not a readable run"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json lacks some of"):
        read_run(tmp_path / "run")
