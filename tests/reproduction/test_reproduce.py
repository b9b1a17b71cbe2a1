"""reproduce.py: the comparison, the table of experiments, and the command."""

import csv
import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import reproduce
from reproduction.jobs import DataSet, Job
from reproduction.noise import Figure, Spread, allowed_difference
from reproduction.published import (
    experiment_names,
)
from reproduction.readme_table import BEGIN, END, MEASURED, README, table_text, update_table
from reproduction.results import read_measured, read_results
from reproduction.running import run_jobs
from tests.support.data_sets import write_updated_release
from tests.support.reproduction_runs import Ended, jobs_for, write_run
from tests.support.small_runs import assert_same_run, only_run, rows
from utils.errors import ConfigError, RunError

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Runs of two seeds on other photos, of one on as many as the published, and one that is not finished."""
    folder = tmp_path / "output" / "reproduction"
    for job, acc in zip(
        jobs_for(folder, "C-3", "C-7", "C-10", repeat=2), (0.10, 0.50, 0.55, 0.11, 0.52, 0.56), strict=True
    ):
        run = write_run(job, acc=acc, photos=(5792, 1372), epochs=100 + job.key.seed)
        facts = {"device": "A GPU", "checkpoint_acc": 0.5, "checkpoint_acc_over_batches": 0.501}
        (run / "reproduction.json").write_text(json.dumps(facts))
    published = DataSet("stanford", "ffffffff")
    for job, acc in zip(jobs_for(folder, "C-7", "C-14", data=published), (0.5428, 0.9), strict=True):
        write_run(job, acc=acc, photos=(8144, 8041))
    write_run(jobs_for(folder, "C-1")[0], status="interrupted", photos=(5792, 1372))
    return tmp_path / "output"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_comparison_of_what_is_there(output, capsys):
    from matplotlib.image import imread

    comparisons = reproduce.main(["--report", "--output", str(output)])
    assert [str(each.condition) for each in comparisons] == [
        "cars, 5,792 / 1,372; settings as published", "stanford, 8,144 / 8,041; settings as published"
    ]  # fmt: skip
    folder = output / "reproduction"
    rows = {(row["data"], row["experiment"]): row for row in table(folder / "comparison.csv")}
    assert list(rows) == [("cars", "C-3"), ("cars", "C-7"), ("cars", "C-10"), ("stanford", "C-7"), ("stanford", "C-14")]

    row = rows["cars", "C-7"]
    assert (row["published_percent"], row["measured_percent"], row["runs"], row["epochs"]) == (
        "54.28",
        "51.0",
        "2",
        "100.5",
    )
    assert float(row["deviation"]) == pytest.approx(math.sqrt(2), abs=1e-4)
    assert (row["same_task"], row["beyond_chance"], row["allowed_difference"]) == ("no", "", "")
    spread = Spread((0.5 + 2.0 + 0.5) / 3, 3)
    assert float(row["chance"]) == pytest.approx(allowed_difference(Figure(51.0, 1372, 2, spread)), abs=1e-4)
    assert rows["cars", "C-10"]["published_percent"] == rows["cars", "C-10"]["difference"] == ""

    same = rows["stanford", "C-7"]
    assert (same["same_task"], same["difference"], same["beyond_chance"]) == ("yes", "0.0", "no")
    far = rows["stanford", "C-14"]
    assert (far["difference"], far["beyond_chance"]) == ("21.5", "yes")

    pairs = {(row["data"], row["section"], row["first"], row["second"]): row for row in table(folder / "pairs.csv")}
    pair = pairs["cars", "augmentation", "C-3", "C-7"]
    assert (pair["published_difference"], pair["measured_difference"]) == ("42.32", "40.5")
    assert (pair["measured_beyond_chance"], pair["inverted"]) == ("yes", "no")
    assert ("cars", "boxes", "C-7", "C-10") not in pairs  # it has no published counterpart

    text = (folder / "comparison.md").read_text()
    assert "| 54.28 | 51.00 ± 1.41 |" in text and "| (-3.28) |" in text and "cars, 5,792 / 1,372: another task" in text
    assert "| +21.50 \\* |" in text and "**Not the published task**" in text
    assert (
        "| C-7 | 1 | cars, 5,792 / 1,372 | 50.00 | 50.10 | +0.100 | 2.50 |" in text
        and "at most 0.28 percent points" in text
    )
    printed = capsys.readouterr().out
    lacking = ("loss, normalisation, augmentation (a fourth augmentation), grayscale, boxes (as published, with the boxes of "
               "other photos), weight decay, dropout,")  # fmt: skip
    assert f"\nNot enough was measured: {lacking} " in text and f" measured: {lacking} " in printed.replace("\n", " ")
    assert "\nNo order was published: boxes (with the right boxes).\n" in text
    assert "\nNo order was published: boxes (with the right boxes).\n" in printed
    assert "not finished: C-1 with seed 0: interrupted" in printed and "(-3.28)" in printed
    picture = imread(folder / "comparison.png")
    assert picture.shape[1] == 1650 and picture.shape[0] > 600
    colours = {tuple(int(255 * part) for part in pixel[:3]) for row in picture[::2] for pixel in row[::2]}
    assert {(27, 108, 168), (209, 73, 91)} <= {tuple(round(part) for part in colour) for colour in colours}


def test_a_report_of_some_experiments_has_only_those(output):
    reproduce.main(["C-3", "--report", "--output", str(output)])
    assert [row["experiment"] for row in table(output / "reproduction" / "comparison.csv")] == ["C-3"]


def test_without_any_run_there_is_nothing_to_compare(tmp_path, capsys):
    assert reproduce.main(["--report", "--output", str(tmp_path)]) == []
    assert "no run in" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_table_keeps_every_run_once(output, tmp_path):
    measured, readme = tmp_path / "measured.csv", tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    new, _ = read_results(output / "reproduction", experiment_names())
    assert update_table(new, measured=measured, readme=readme) == len(new) == 8
    assert read_measured(measured) == new

    again = [replace(new[0], valid_acc_percent=12.5), replace(new[1], seed=9, run="ghost_new")]
    assert update_table(again, measured=measured, readme=readme) == 9
    rows = read_measured(measured)
    assert again[0] in rows and again[1] in rows and new[0] not in rows and new[1] in rows

    text = readme.read_text()
    assert (
        text.startswith(f"# Before\n\n{BEGIN}\n\n| id |")
        and text.endswith(f"{END}\n\nAfter\n")
        and "\nold\n" not in text
    )
    lines = {line.split("]")[0][3:]: line for line in text.splitlines() if line.startswith("| [C-")}
    assert len(lines) == 58
    assert lines["C-14"].endswith("| 98.84 | 68.50 | 134 | 4,153,092 | 90.00 | 90.00 | 2 | 1 | stanford (2) |")
    assert lines["C-7"].endswith(
        "| 90.00<br>90.00 | 51.00 ± 1.41<br>54.28 | 100<br>2 | 2<br>1 | cars: another task (1)<br>stanford (2) |"
    )
    assert lines["C-10"].endswith(
        "; right boxes | – | – | – | – | 90.00 | 55.50 ± 0.71 | 100 | 2 | cars: another task (1) |"
    )
    assert lines["C-66"].endswith("= 0.98 | 98.72 | 70.46 | 90 | 3,041,412 |  |  |  |  |  |")
    assert "(1) cars, 5,792 / 1,372; settings as published. Not the published task" in text and "A GPU; 32-true" in text
    verdict = "same order; 1 of the 1 published differences beyond chance confirmed"
    assert f"| augmentation | first sets | 2 of 5 | 1 | 0 | 0 | 1.00 | {verdict} |" in text.partition("\n(1) Did ")[2]
    assert text.partition("\n(2) Did ")[2].startswith(
        "the order of the variants hold?\n\n| question | variants | measured | "
    )
    assert (
        "at most 0.10 percent points apart (C-3, seed 0; runs: 7); 2.50 are possible there, 0.28 on the published"
        in text
    )


def test_the_table_in_the_repository_is_the_one_that_the_command_writes():
    text = README.read_text(encoding="utf-8")
    written = re.search(f"{re.escape(BEGIN)}\n\n(.*)\n{re.escape(END)}", text, re.DOTALL)[1]
    assert written == table_text(read_measured(MEASURED))


def test_a_table_that_cannot_be_changed_is_named(output, tmp_path):
    measured, readme = tmp_path / "measured.csv", tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(ConfigError, match="has no place for the table"):
        update_table([], measured=measured, readme=readme)
    measured.write_text("experiment,seed\nC-1,none\n")
    with pytest.raises(ConfigError, match="is not what this command wrote"):
        update_table([], measured=measured, readme=readme)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the experiments"),
        (["C-1", "--repeat", "0"], "--repeat 0: expected at least 1"),
        (["C-1", "--shorten", "0"], "--shorten 0: expected at least 1"),
        (["--report", "--shorten", "2"], "--report runs nothing"),
        (["--report", "--set", "num_epochs=1"], "--report runs nothing"),
        (["--table", "-d", "x"], "--table runs nothing"),
        (["C-1", "--set", "num_epohs=1"], "C-1: .*(\n|.)*Did you mean 'num_epochs'"),
    ],
)
def test_wrong_arguments_are_answered_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        reproduce.main([*arguments, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_failed_runs_are_named_at_the_end_and_the_rest_is_compared(tmp_path, monkeypatch, capsys):
    write_updated_release(tmp_path / "cars")

    def start(job: Job, output: Path) -> Ended:
        if job.key.experiment == "C-2":
            output.write_text("error: no room\n")
            return Ended(exitcode=1)
        write_run(job)
        return Ended()

    monkeypatch.setattr(reproduce, "run_jobs", lambda jobs, folder: run_jobs(jobs, folder, start=start))
    with pytest.raises(RunError, match=r"(?s)runs that failed: 1; .*C-2 with seed 0: no room; see ") as caught:
        reproduce.main(["C-1", "C-2", "C-3", "-d", str(tmp_path / "cars"), "--output", str(tmp_path / "output")])
    assert caught.value.exit_code == 1
    compared = table(tmp_path / "output" / "reproduction" / "comparison.csv")
    assert [row["experiment"] for row in compared] == ["C-1", "C-3"]


@pytest.mark.slow
def test_the_command_trains_two_experiments_and_does_nothing_the_second_time(tmp_path, capsys):
    cars, output = tmp_path / "cars", tmp_path / "output"
    write_updated_release(cars, train_per_class=4, valid_per_class=3, image_sizes=[(40, 32), (32, 40)])
    changes = ["image_size=[32, 32]", "batch_size=4", "num_epochs=1", "num_workers=0", "accelerator=cpu", "trackers=[]",
               "cache_path=null"]  # fmt: skip
    command = [
        "C-1",
        "C-12",
        "-d",
        str(cars),
        "--output",
        str(output),
        *(w for change in changes for w in ("--set", change)),
    ]
    (comparison,) = reproduce.main(command)

    folder = output / "reproduction"
    runs = {json.loads(path.read_text())["experiment_id"]: path.parent for path in folder.glob("*/run.json")}
    assert set(runs) == {"C-1", "C-12"} and all((run / "checkpoints" / "best.ckpt").is_file() for run in runs.values())
    assert str(comparison.condition) == "cars, 12 / 9; batch_size=4; image_size=[32, 32]; num_epochs=1"
    for row in table(folder / "comparison.csv"):
        run = runs[row["experiment"]]
        record, facts = (json.loads((run / name).read_text()) for name in ("run.json", "reproduction.json"))
        assert record["parameters"]["grayscale"] == (row["experiment"] == "C-12")
        assert float(row["measured_percent"]) == round(100 * record["best"]["best_valid_acc"], 4)
        # One epoch: the best checkpoint is of it. Batches of 4, 4 and 1 photos.
        assert facts["checkpoint_acc"] == record["best"]["best_valid_acc"]
        in_batches = {(a / 4 + b / 4 + c) / 3 for a in range(5) for b in range(5) for c in (0, 1)
                      if a + b + c == round(9 * facts["checkpoint_acc"])}  # fmt: skip
        assert any(facts["checkpoint_acc_over_batches"] == pytest.approx(each) for each in in_batches)
        assert facts["device"] and row["device"] == facts["device"]

    before = {path: path.stat().st_mtime_ns for run in runs.values() for path in run.rglob("*")}
    capsys.readouterr()
    reproduce.main(command)
    assert "2 of 2 runs are finished already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for run in folder.glob("ghost_*") for path in run.rglob("*")} == before


@pytest.mark.slow
def test_a_real_training_that_a_signal_broke_off_goes_on_with_the_same_command_as_if_nothing_had_happened(
    cars, tmp_path
):
    changes = ["image_size=[32, 32]", "batch_size=4", "num_epochs=25", "early_stopping_patience=null", "num_workers=0",
               "accelerator=cpu", "trackers=[]", f"cache_path={tmp_path / 'cache'}"]  # fmt: skip
    command = ["C-12", "-d", str(cars), *(word for change in changes for word in ("--set", change))]
    broken_off, whole = (tmp_path / name for name in ("broken off", "whole"))
    process = subprocess.Popen(
        [sys.executable, "reproduce.py", *command, "--output", str(broken_off)], cwd=PROJECT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not list(broken_off.glob("reproduction/ghost_*/metrics.csv")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "to go on, give the same command again" in said, said
    run = only_run(broken_off / "reproduction")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted" and 1 <= len(rows(run)) < 25

    first, second = (reproduce.main([*command, "--output", str(output)]) for output in (broken_off, whole))
    assert first[0].figures == second[0].figures
    assert only_run(broken_off / "reproduction") == run and len(rows(run)) == 25
    assert_same_run(run, only_run(whole / "reproduction"))
