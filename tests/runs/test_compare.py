"""Comparison of runs: what is read of their folders, the tables, the picture, and the command itself."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml
from matplotlib.figure import Figure

import compare
from utils.errors import ConfigError, RunError
from utils.machine import PROJECT
from utils.runs import curves
from utils.runs.comparison import (
    MISSING,
    SORTS,
    describe_runs,
    differences,
    find_runs,
    format_table,
    read_run,
    sort_runs,
    write_table,
)
from utils.runs.lock import hold
from utils.runs.metrics import COLUMNS, Row

SETTINGS = {
    "experiment_id": None,
    "checkpoint_interval": 10.0,
    "dropout": 0.2,
    "optimizer_params": {"lr": 0.001, "weight_decay": 0.2},
    "image_augmentations": {"RandomHorizontalFlip": {"p": 0.5}, "ColorJitter": {"hue": 0.1, "contrast": 0.2}},
}


def epochs(*valid_acc: float, first_loss: float = 4.0) -> list[Row]:
    return [
        {
            "epoch": epoch,
            "train_loss": first_loss / (epoch + 1),
            "train_acc": acc + 0.1,
            "valid_loss": first_loss / (epoch + 1) + 0.5,
            "valid_acc": acc,
            "lr": 0.001,
            "train_top5_acc": acc + 0.2,
            "valid_top5_acc": acc + 0.15,
        }
        for epoch, acc in enumerate(valid_acc)
    ]


def write_csv(path: Path, rows: list[Row]) -> None:
    """Writes as `utils.files.write_csv` does, but does not wait for the disk."""
    lines = [list(rows[0] if rows else COLUMNS), *(row.values() for row in rows)]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))


def write_run(folder: Path, rows: list[Row] | None, settings: dict[str, Any] | None = None, **record: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.safe_dump(SETTINGS | (settings or {}), sort_keys=False))
    if rows is not None:
        write_csv(folder / "metrics.csv", rows)
    values = {"status": "completed", "seconds": 3661.4, "parameters": {"num_params": 3_041_412}, "num_classes": 196}
    (folder / "run.json").write_text(json.dumps(values | record))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    write_run(folder / "ghost_1", epochs(0.1, 0.61239, 0.5), experiment_id="C-1")
    write_run(
        folder / "ghost_2",
        epochs(0.2, 0.83794),
        {"dropout": 0.5},
        experiment_id="C-2",
        seconds=59,
        status="interrupted",
    )
    write_run(folder / "ghost_3", epochs(0.3, first_loss=9), parameters={"num_params": 999}, seconds=86400)
    return folder


def aged(folder: Path, seconds: float) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)
    return folder


def test_the_table_shows_the_results_of_each_run(output: Path):
    runs = sort_runs([read_run(folder) for folder in find_runs([], output)], "valid_acc")
    assert describe_runs(runs, width=112).splitlines() == [
        "#  run      id   status       epochs  valid_acc  epoch  valid_loss  train_acc  parameters  duration",
        "1  ghost_2  C-2  interrupted       2    83.79 %      1      2.5000    93.79 %   3,041,412   0:00:59",
        "2  ghost_1  C-1  completed         3    61.24 %      1      1.8333    71.24 %   3,041,412   1:01:01",
        "3  ghost_3  –    completed         1    30.00 %      0      9.5000    40.00 %         999  24:00:00",
        "",
        "Differing settings:",
        "#  dropout",
        "1      0.5",
        "2      0.2",
        "3      0.2",
        "",
        "Each value is the best of its run; 'epoch', counted from 0, is that of valid_acc. valid_acc and valid_loss are",
        "of the validation split, which also chose the checkpoint: expect slightly lower accuracy on new images.",
    ]
    assert not any(run.problems for run in runs)


def test_runs_of_other_photos_are_not_set_against_each_other(output: Path):
    write_run(output / "demo", epochs(0.9), num_classes=15)
    text = describe_runs([read_run(folder) for folder in find_runs([], output)], width=120)
    assert "These runs differ in the number of classes: their accuracies cannot be compared." in text.splitlines()


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("valid_acc", "2 1 3 empty"), ("valid_loss", "1 2 3 empty"), ("train_acc", "2 1 3 empty"),
        ("train_loss", "1 2 3 empty"), ("valid_top5_acc", "2 1 3 empty"), ("train_top5_acc", "2 1 3 empty"),
        ("epochs", "empty 3 2 1"), ("parameters", "3 1 2 empty"), ("duration", "2 1 3 empty"),
    ],
)  # fmt: skip
def test_runs_are_sorted_best_first_and_unknown_last(output: Path, by: str, expected: str):
    (output / "empty" / "checkpoints").mkdir(parents=True)
    runs = sort_runs([read_run(folder) for folder in find_runs([], output)], by)
    assert [run.name.removeprefix("ghost_") for run in runs] == expected.split()
    # The metric that sorts is always in the table.
    assert by in describe_runs(runs, width=200, sort=by).splitlines()[0].split()
    assert by in SORTS


def test_differences_are_named_by_the_innermost_key(tmp_path: Path):
    changes = [
        {"optimizer_params": {"weight_decay": 0.2, "lr": 0.001}},  # another order of parameters is no difference
        {"optimizer_params": {"lr": 0.001}, "experiment_id": "C-7"},
        {"image_augmentations": None, "precision": "16-mixed"},
        {"image_augmentations": {"RandomHorizontalFlip": {"p": 0.1}, "ColorJitter": None}},
    ]
    folders = [write_run(tmp_path / str(index), [], change) for index, change in enumerate(changes)]
    (folders[0] / "config.yml").rename(tmp_path / "config.yml")  # a run of unknown settings differs in nothing
    runs = [read_run(folder) for folder in folders]
    jitter = SETTINGS["image_augmentations"]["ColorJitter"]
    assert differences(runs) == {
        "optimizer_params.weight_decay": [MISSING, MISSING, 0.2, 0.2],
        "image_augmentations.RandomHorizontalFlip": [MISSING, {"p": 0.5}, MISSING, {"p": 0.1}],
        "image_augmentations.ColorJitter": [MISSING, jitter, MISSING, None],
        "precision": [MISSING, MISSING, "16-mixed", MISSING],
    }
    assert differences([runs[1], runs[3]])["image_augmentations.ColorJitter.hue"] == [0.1, MISSING]
    heading = describe_runs(runs, width=200).split("settings:\n")[1].splitlines()[0]
    assert heading.split() == ["#", "weight_decay", "RandomHorizontalFlip", "ColorJitter", "precision"]


def test_augmentations_in_another_order_differ(tmp_path: Path):
    given = SETTINGS["image_augmentations"]
    turned = dict(reversed(given.items()))
    more = {"RandomHorizontalFlip": {"p": 0.5}, "RandomRotation": {"degrees": 5}, "ColorJitter": given["ColorJitter"]}
    first, second, third = (
        read_run(write_run(tmp_path / str(index), [], {"image_augmentations": value}))
        for index, value in enumerate((given, turned, more))
    )
    found = differences([first, second])
    assert list(found) == ["image_augmentations"]
    assert [list(value) for value in found["image_augmentations"]] == [list(given), list(turned)]
    assert differences([first, third]) == {"image_augmentations.RandomRotation": [MISSING, {"degrees": 5}]}
    assert "All settings are equal." in describe_runs([first, first], width=80)
    (tmp_path / "0" / "config.yml").unlink()
    unknown = read_run(tmp_path / "0")
    assert "All settings are equal." not in describe_runs([unknown, unknown], width=80)


def test_an_ambiguous_key_is_written_whole(tmp_path: Path):
    changes = [{"optimizer_params": {"gamma": value}, "lr_scheduler_params": {"gamma": value}} for value in (1, 2)]
    runs = [read_run(write_run(tmp_path / str(index), [], change)) for index, change in enumerate(changes)]
    text = describe_runs(runs, width=200).split("settings:\n")[1]
    assert text.splitlines()[0].split() == ["#", "optimizer_params.gamma", "lr_scheduler_params.gamma"]


def test_many_settings_of_few_runs_stand_side_by_side(tmp_path: Path):
    changes = [{"dropout": value, "seed": value, "tags": [value, "a"]} for value in (1, 2)]
    runs = [read_run(write_run(tmp_path / str(index), [], change)) for index, change in enumerate(changes)]
    lines = describe_runs(runs, width=100).split("settings:\n")[1].split("\n\n")[0].splitlines()
    assert lines == ["#        1       2", "dropout  1       2", "seed     1       2", "tags     [1, a]  [2, a]"]


@pytest.mark.parametrize("width", [27, 33, 50, 79, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int):
    runs = [
        read_run(
            write_run(
                tmp_path / f"timm_mobilenetv3_large_100_2026112310150{index}",
                epochs(0.1 * index),
                {
                    "description": f"line\nbreak \x1b[31m {index} " + "long " * 40,
                    "image_size": [index] * 30,
                    "seed": index,
                },
                experiment_id=f"C-{index}",
            )
        )
        for index in range(3)
    ]
    text = describe_runs(runs, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.replace("\n", "").isprintable()
    columns = "# run id status epochs valid_acc epoch valid_loss train_acc parameters duration"
    heads = [block.splitlines()[0] for block in text.split("\n\nDiffering")[0].split("\n\n")]
    assert [name for head in heads for name in head.split() if name != "#"] == columns.split()[1:]


def test_a_cell_keeps_both_its_ends_and_every_column_is_shown():
    columns = [["#", "1", "2"], ["a", "abcdefghijkl", "–"], ["b", "0.5", "1e-05"], ["c", "x", "–"]]
    assert format_table(columns, width=18, widest=8).splitlines() == [
        "#  a             b", "1  abcd…jkl    0.5", "2  –         1e-05", "", "#  c", "1  x", "2  –",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("age", "interval", "epoch_seconds", "status"),
    [
        (0, 10.0, [], "running"),
        (1190, 10.0, [], "running"),
        (1210, 10.0, [], "killed?"),
        (1190, 0.1, [], "running"),  # validation may take longer than the interval
        (7000, 60.0, [], "running"),
        (7300, 60.0, [], "killed?"),
        (7000, None, [], "running"),  # nothing is known of how long an epoch lasts
        (7300, None, [], "killed?"),
        (7300, 10.0, [100.0, 4000.0], "running"),
        (8100, 10.0, [100.0, 4000.0], "killed?"),
    ],
)
def test_a_silent_run_is_not_called_running(
    tmp_path: Path, age: float, interval: float | None, epoch_seconds: list[float], status: str
):
    folder = write_run(
        tmp_path / "ghost", epochs(0.1), {"checkpoint_interval": interval}, status="running", seconds=0.0
    )
    rows = [{"epoch": epoch, "seconds": seconds} for epoch, seconds in enumerate(epoch_seconds)]
    write_csv(folder / "speed.csv", rows)
    (folder / "checkpoints" / "last.ckpt").touch()
    run = read_run(aged(folder, age))
    assert (run.status, run.seconds) == (status, sum(epoch_seconds))
    if status == "killed?":
        hours, minutes = divmod(age // 60, 60)
        (problem,) = run.problems
        assert problem.startswith(f"{folder} was running at its last write, {hours}:{minutes:02}:")
        assert problem.endswith(f"; to resume: python train.py --resume {folder}")
    else:
        assert run.problems == []
        (folder / "checkpoints" / "last.ckpt").unlink()
    assert read_run(write_run(tmp_path / "ended", [], status="failed")).status == "failed"


def test_any_file_that_is_written_shows_that_a_run_goes_on(tmp_path: Path):
    folder = aged(write_run(tmp_path / "ghost", epochs(0.1), status="running"), 10_000)
    assert read_run(folder).problems[0].endswith(" ago")  # without a checkpoint there is nothing to go on with
    for name in ("train.log", "checkpoints/last.ckpt", "metrics.csv", "run.json"):
        (folder / name).touch()
        assert read_run(folder).status == "running", name
        aged(folder, 10_000)
        assert read_run(folder).status == "killed?"


def test_the_lock_shows_at_once_that_a_process_has_ended(tmp_path: Path):
    folder = write_run(tmp_path / "ghost", epochs(0.1), {"checkpoint_interval": 1.0}, status="running")
    lock = hold(folder)
    assert read_run(aged(folder, 10_000)).status == "running"
    lock.release()
    (folder / "run.json").touch()
    run = read_run(folder)
    assert (run.status, len(run.problems)) == ("killed?", 1)
    assert read_run(write_run(tmp_path / "ended", [])).status == "completed"


def test_a_run_that_goes_on_shows_its_newest_epoch(tmp_path: Path):
    stale = {"best_valid_acc": 0.1, "best_valid_acc_epoch": 0}
    run = read_run(write_run(tmp_path / "ghost", epochs(0.1, 0.4), status="running", best=stale))
    assert (run.best["best_valid_acc"], run.best["best_valid_acc_epoch"], run.epochs) == (0.4, 1, 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"status": "comp'])
def test_a_damaged_record_is_named_and_the_rest_is_shown(output: Path, content: bytes):
    (output / "ghost_2" / "run.json").write_bytes(content)
    run = read_run(output / "ghost_2")
    assert run.problems == [
        f"{output / 'ghost_2' / 'run.json'} is missing or damaged: status, parameters and duration are unknown"
    ]
    assert (run.status, run.num_params, run.seconds, run.epochs) == ("unknown", None, None, 2)
    assert run.best["best_valid_acc"] == 0.83794
    line = describe_runs([run], width=120).splitlines()[1]
    assert " ".join(line.split()) == "1 ghost_2 unknown 2 83.79 % 1 2.5000 93.79 % – –"


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("", 0),
        ("\x00\x01\n\x00", 0),
        ("epoch,valid_acc\n0,0.5\n1,oh\n2,0.7\n", 1),
        ("epoch,valid_acc,lr\n0,0.5,0.1\n1,0.6\n", 1),
        ("epoch,valid_acc\n0,0.5\n1,0.6,0.7\n", 1),
        ("valid_acc\n0.5\n", 0),
    ],
)
def test_damaged_metrics_are_named_and_the_rest_is_shown(output: Path, content: str, rows: int):
    path = output / "ghost_2" / "metrics.csv"
    path.write_text(content)
    run = read_run(path.parent)
    assert run.problems == [f"{path} is damaged: {rows} epochs can be read"]
    assert (len(run.rows), run.status, run.num_params) == (rows, "interrupted", 3_041_412)
    assert run.best.get("best_valid_acc") == (0.5 if rows else None)


def test_a_run_without_metrics_falls_back_on_its_record(tmp_path: Path):
    best = {"best_valid_acc": 0.5, "best_valid_acc_epoch": 7, "best_valid_loss": "oh", "best_new": None}
    run = read_run(write_run(tmp_path / "ghost", None, best=best, epochs=12))
    assert (run.best, run.epochs, run.problems) == ({"best_valid_acc": 0.5, "best_valid_acc_epoch": 7}, 12, [])


def test_a_damaged_configuration_is_named_with_its_line(output: Path):
    (output / "ghost_1" / "config.yml").write_text("seed: 1\nseed: [")
    run = read_run(output / "ghost_1")
    (problem,) = run.problems
    assert "config.yml:2: not valid YAML" in problem and problem.endswith("; its settings are unknown")
    assert (run.settings, run.experiment_id) == ({}, "C-1")


def test_runs_of_other_versions_are_shown(output: Path):
    odd = {"parameters": [1], "best": 3, "seconds": "long", "epochs": None, "status": "paused", "new": {"a": 1}}
    for name, record in (("old", {"status": "completed"}), ("odd", odd)):
        (output / name).mkdir()
        (output / name / "run.json").write_text(json.dumps(record))
    (output / "old" / "metrics.csv").write_text("epoch,valid_acc,new\n0,0.25,nan\n")
    (output / "old" / "config.yml").write_text("dropout: 0.2\nnew_key: 5\n")
    old, odd = read_run(output / "old"), read_run(output / "odd")
    assert (old.status, old.best, old.num_params) == (
        "completed",
        {"best_valid_acc": 0.25, "best_valid_acc_epoch": 0},
        None,
    )
    assert (odd.status, odd.best, odd.num_params, odd.seconds, odd.epochs) == ("paused", {}, None, None, 0)
    assert old.problems == odd.problems == []
    assert differences([old, read_run(output / "ghost_1")])["new_key"] == [5, MISSING]
    lines = [" ".join(describe_runs([run], width=120).splitlines()[1].split()) for run in (old, odd)]
    assert lines == ["1 old completed 1 25.00 % 0 – – – –", "1 odd paused 0 – – – – – –"]


def test_one_warning_for_each_damaged_file_and_no_run_is_lost(output: Path, capsys: pytest.CaptureFixture[str]):
    (output / "ghost_1" / "run.json").write_text("{")
    (output / "ghost_3" / "metrics.csv").write_text("epoch,valid_acc\n0,0.5\n1")
    (output / "empty" / "checkpoints").mkdir(parents=True)
    (output / "mlflow").mkdir()  # not a run
    (output / "notes.txt").touch()
    runs = compare.main(["--output", str(output)])
    printed = capsys.readouterr()
    assert [(run.name, run.status) for run in runs] == [
        ("ghost_2", "interrupted"), ("ghost_1", "unknown"), ("ghost_3", "completed"), ("empty", "empty"),
    ]  # fmt: skip
    assert [line.split(" is ")[0] for line in printed.err.splitlines()] == [
        f"warning: {output / 'ghost_1' / 'run.json'}", f"warning: {output / 'ghost_3' / 'metrics.csv'}",
    ]  # fmt: skip
    assert [line.split()[1] for line in printed.out.splitlines()[1:5]] == ["ghost_2", "ghost_1", "ghost_3", "empty"]
    assert printed.out.endswith(f"\n\ncurves: {output / 'comparison.png'}\n")
    assert matplotlib.image.imread(output / "comparison.png").shape[:2] == (1012, 1650)


def test_runs_are_found_by_folder_and_by_name(output: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_runs(["ghost_2", str(output / "ghost_1"), f"{output}/ghost_2/"], output) == [
        output / "ghost_2", output / "ghost_1",
    ]  # fmt: skip
    monkeypatch.chdir(output / "ghost_3")
    assert read_run(*find_runs(["."], output)).name == "ghost_3"
    assert [path.name for path in find_runs([], output)] == ["ghost_1", "ghost_2", "ghost_3"]


def test_without_runs_the_error_suggests_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^output has no runs yet"):  # output_path of config.yml
        compare.main([])
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=f"^{folder} has no runs yet; start one: python train.py, or .* --demo$"):
            compare.main(["--output", str(folder)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sort", "valid_ac"],
            "--sort valid_ac: unknown metric. Did you mean 'valid_acc'? Allowed: valid_acc, valid_",
        ),
        (["--picture", "curves.jpg"], "--picture curves.jpg: expected a name that ends in .png"),
        (["--csv", "none/a.csv"], "--csv none/a.csv: the folder none"),
    ],
)
def test_wrong_arguments_are_answered_before_anything_is_read(arguments: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        compare.main(arguments)
    assert str(caught.value).startswith(message)


def test_the_csv_holds_every_digit_and_every_difference(output: Path):
    path = output / "table.csv"
    write_run(output / "old", [], {"new_key": None}, seconds=1e6)
    runs = sort_runs([read_run(folder) for folder in find_runs([], output)], "duration")
    write_table(runs, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [run.name for run in runs] == ["ghost_2", "ghost_1", "ghost_3", "old"]
    assert [row.pop("new_key") for row in rows] == ["", "", "", "null"]
    empty = rows.pop()
    assert (empty["best_valid_acc"], empty["best_valid_acc_epoch"], empty["seconds"]) == ("", "", "1000000.0")
    metrics = ("train_loss", "train_acc", "valid_loss", "valid_acc", "train_top5_acc", "valid_top5_acc")
    for row, run in zip(rows, runs[:3], strict=True):
        for metric in metrics:
            values = [(-1 if metric.endswith("acc") else 1) * values[metric] for values in run.rows]
            assert float(row[f"best_{metric}"]) == abs(min(values))
            assert int(row[f"best_{metric}_epoch"]) == values.index(min(values))
        assert row["folder"] == str(run.folder)
    assert [row["dropout"] for row in rows] == ["0.5", "0.2", "0.2"]
    for number, run in enumerate(runs):
        run.settings["precision"], run.record["precision"] = ("auto", "32-true")[number % 2], "32-true"
    write_table(runs, path)
    with path.open(newline="") as file:
        assert [row["precision"] for row in csv.DictReader(file)] == ["auto", "32-true", "auto", "32-true"]
    assert [row["experiment_id"] for row in rows] == ["C-2", "C-1", ""]
    assert [row["num_params"] for row in rows] == ["3041412", "3041412", "999"]
    assert [row["num_classes"] for row in rows] == ["196"] * 3
    assert "seed" not in rows[0] and "optimizer_params.lr" not in rows[0]


def test_the_command_needs_neither_torch_nor_matplotlib_to_answer(output: Path):
    program = (
        "import sys, compare, utils.cli as c; code = c.run_command(compare.main);"
        "print([m for m in ('torch', 'pytorch_lightning', 'matplotlib', 'numpy') if m in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "ghost_9", "--output", str(output)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("error: ghost_9: no such run; nearest in ")


def test_it_draws_nothing_where_no_epoch_was_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "ghost", [])
    compare.main(["--output", str(tmp_path)])
    assert capsys.readouterr().out.endswith("curves: none, no run has completed an epoch\n")
    assert not list(tmp_path.glob("*.png"))


def test_table_and_picture_lie_where_they_are_asked_for(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture, table = tmp_path / "mine.png", tmp_path / "mine.csv"
    compare.main(
        ["ghost_1", "--output", str(output), "--picture", str(picture), "--csv", str(table), "--sort", "epochs"]
    )
    assert matplotlib.image.imread(picture).shape[:2] == (528, 1650)
    assert len(table.read_text().splitlines()) == 2
    assert capsys.readouterr().out.endswith(f"\n\ntable:  {table}\ncurves: {picture}\n")
    assert not (output / "comparison.png").exists()
    with pytest.raises(RunError, match="cannot be written"):
        curves.draw_curves({"a": []}, tmp_path / "none" / "a.png")


def test_the_curves_show_every_epoch_of_every_run():
    runs = {"a": epochs(0.1, 0.4, 0.3), "b": [], "c": epochs(0.2, 0.1, first_loss=3)}
    figure = Figure()
    curves._draw_several(figure, runs)
    valid_loss, valid_acc, legend, train_loss, train_acc, lr = figure.axes
    for axes, metric, factor in (
        (valid_loss, "valid_loss", 1), (valid_acc, "valid_acc", 100), (train_loss, "train_loss", 1),
        (train_acc, "train_acc", 100), (lr, "lr", 1),
    ):  # fmt: skip
        drawn = {line.get_color(): line for line in axes.lines if line.get_marker() != "o"}
        for rows, colour in zip(runs.values(), curves.COLORS, strict=False):
            assert list(drawn[colour].get_xdata()) == [row["epoch"] for row in rows]
            assert list(drawn[colour].get_ydata()) == [factor * row[metric] for row in rows]
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in valid_acc.lines if line.get_marker() == "o"]
    assert sorted(dots) == [(0, 20), (1, 40)]
    assert [text.get_text() for text in legend.get_legend().texts] == ["1  a", "2  b", "3  c"]
    assert [line.get_color() for line in legend.get_legend().get_lines()] == list(curves.COLORS[:3])
    assert sorted((text.get_text(), text.xy) for text in valid_acc.texts) == [("1", (2, 30)), ("3", (1, 10))]


def test_a_spike_is_cut_off_with_a_note():
    runs = {"a": epochs(0.1, 0.2), "b": epochs(0.1, 0.2, first_loss=5.0)}
    runs["a"][1]["valid_loss"] = 150.0
    figure = Figure()
    curves._draw_several(figure, runs)
    assert figure.axes[0].get_ylim() == figure.axes[3].get_ylim() == (0, 7)
    assert figure.axes[0].get_title() == "validation loss (higher values are cut off)"
    assert figure.axes[3].get_title() == "training loss"


def test_values_that_are_missing_or_not_finite_are_left_out(tmp_path: Path):
    rows = epochs(0.1, 0.2, 0.3)
    rows[1] |= {"valid_loss": math.nan, "train_loss": math.inf}
    figure = Figure()
    curves._draw_one(figure, rows)
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert drawn[0] == pytest.approx([4.5, math.nan, 4 / 3 + 0.5], nan_ok=True)
    assert drawn[1] == pytest.approx([4.0, math.nan, 4 / 3], nan_ok=True)
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[:2]]
    assert legends == [["validation: 1.8333 in epoch 2", "training"], ["validation: 30.00 % in epoch 2", "training"]]
    nothing = [{"epoch": 0, "valid_loss": math.nan, "lr": 0.0}]
    curves.draw_curves({"$\\foo$": nothing, "_b": [{"epoch": 0}]}, tmp_path / "several.png", title="$\\bar$")
    curves._draw_one(Figure(), nothing)


@pytest.mark.parametrize("count", [30, 70])
def test_the_legend_of_many_runs_stays_within_the_picture(count: int):
    names = [f"C-{number}: timm_mobilenetv3_large_100_20261123101500_{number}, 83.79 %" for number in range(count)]
    figure = Figure(figsize=(15, 9.2), layout="constrained")
    curves._draw_several(figure, {name: epochs(0.1, 0.2) for name in names})
    figure.draw_without_rendering()
    legend = figure.axes[2].get_legend()
    box, below = legend.get_window_extent(), figure.axes[5].title.get_window_extent()
    assert 0 < box.x0 < box.x1 <= figure.bbox.x1 and below.y1 < box.y0 < box.y1 <= figure.bbox.y1
    texts = [text.get_text() for text in legend.texts]
    assert len(texts) == min(count, 60)
    assert texts[0].startswith("1  C-0: timm_mobile") and texts[0].endswith("01500_0, 83.79 %")
    assert ("… and 10 more" in texts[-1]) == (count == 70)
    assert min(text.get_fontsize() for text in legend.texts) >= 6.5
    assert len({line.get_color() for line in legend.get_lines()}) == min(count, 60)
    panels = [axes.get_window_extent().width for axes in figure.axes if axes is not figure.axes[2]]
    assert min(panels) > 0.2 * figure.bbox.width
