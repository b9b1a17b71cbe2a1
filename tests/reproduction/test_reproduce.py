"""reproduce.py: the comparison, the table of experiments, and the command."""

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
import train
from reproduction.comparison import Accuracy, Spread, margin_of_error
from reproduction.planning import DataSet, read_data_set
from reproduction.published import EXPERIMENTS, choose_experiments
from reproduction.queue import run_jobs
from reproduction.readme import BEGIN, END, MEASURED, PICTURE, README, first_drop_text, table_text, update_readme
from reproduction.results import Measured, read_results, read_table
from tests.support.data_sets import write_updated_release
from tests.support.reproduction_runs import Ended, jobs_for, write_facts, write_run
from tests.support.small_runs import assert_same_run, only_run, rows, table
from utils.cli import set_options
from utils.config import load_config
from utils.errors import ConfigError, RunError
from utils.machine import PROJECT

NAMES = ("first drop", "table")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Runs of two seeds on other photos, of one on as many as the published, and one that is not finished."""
    folder = tmp_path / "output" / "reproduction"
    for job, acc in zip(
        jobs_for(folder, "C-3", "C-7", "C-10", repeat=2), (0.10, 0.50, 0.55, 0.11, 0.52, 0.56), strict=True
    ):
        write_facts(write_run(job, acc=acc, photos=(5792, 1372), epochs=100 + job.key.seed))
    published = DataSet("stanford", "ffffffff")
    for job, acc in zip(jobs_for(folder, "C-7", "C-14", data=published), (0.5428, 0.9), strict=True):
        write_run(job, acc=acc, photos=(8144, 8041))
    write_run(jobs_for(folder, "C-1")[0], status="interrupted", photos=(5792, 1372))
    return tmp_path / "output"


def test_the_comparison_of_what_is_there(output, capsys):
    from matplotlib.image import imread

    comparisons = reproduce.main(["--report", "--output", str(output)])
    assert [str(each.setup) for each in comparisons] == [
        "stanford, 8,144 / 8,041; no settings changed", "cars, 5,792 / 1,372; no settings changed"
    ]  # fmt: skip
    folder = output / "reproduction"
    rows = {(row["data"], row["experiment"]): row for row in table(folder / "comparison.csv")}
    assert list(rows) == [("stanford", "C-7"), ("stanford", "C-14"), ("cars", "C-3"), ("cars", "C-7"), ("cars", "C-10")]

    row = rows["cars", "C-7"]
    assert (row["published_percent"], row["measured_percent"], row["runs"], row["epochs"]) == (
        "54.28",
        "51.0",
        "2",
        "100.5",
    )
    assert float(row["deviation"]) == pytest.approx(math.sqrt(2), abs=1e-4)
    assert (row["same_task"], row["significant"], row["difference_margin"]) == ("no", "", "")
    spread = Spread((0.5 + 2.0 + 0.5) / 3, 3)
    assert float(row["margin"]) == pytest.approx(margin_of_error(Accuracy(51.0, 1372, 2, spread)), abs=1e-4)
    assert rows["cars", "C-10"]["published_percent"] == rows["cars", "C-10"]["difference"] == ""

    same = rows["stanford", "C-7"]
    assert (same["same_task"], same["difference"], same["significant"]) == ("yes", "0.0", "no")
    far = rows["stanford", "C-14"]
    assert (far["difference"], far["significant"]) == ("21.5", "yes")

    pairs = {(row["data"], row["section"], row["first"], row["second"]): row for row in table(folder / "pairs.csv")}
    pair = pairs["cars", "augmentation", "C-3", "C-7"]
    assert (pair["published_difference"], pair["measured_difference"]) == ("42.32", "40.5")
    assert (pair["measured_significant"], pair["reversed"]) == ("yes", "no")
    assert ("cars", "boxes", "C-7", "C-10") not in pairs  # it has no published counterpart

    text = (folder / "comparison.md").read_text()
    assert (
        "| 54.28 | 51.00 ± 1.41 |" in text and "| (-3.28) |" in text and "cars, 5,792 / 1,372, different task" in text
    )
    assert "| +21.50 \\* |" in text and "**Not the published task**" in text
    assert (
        "| C-7 | 1 | cars, 5,792 / 1,372 | 50.00 | 50.10 | +0.100 | 2.50 |" in text
        and "at most 0.28 percentage points" in text
    )
    printed = capsys.readouterr().out
    lacking = ("loss, normalization, augmentation (a fourth augmentation), grayscale, boxes (as published, with the boxes of "
               "other photos), weight decay, dropout,")  # fmt: skip
    assert f"\nToo few variants measured: {lacking} " in text and f" measured: {lacking} " in printed.replace("\n", " ")
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
    assert "no finished run in" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_table_keeps_every_run_once(output, tmp_path):
    measured, readme = tmp_path / "measured.csv", tmp_path / "README.md"
    readme.write_text(
        "# Before\n\n" + "".join(f"{BEGIN.format(n)}\nold\n{END.format(n)}\n\n" for n in NAMES) + "After\n"
    )
    new, _ = read_results(output / "reproduction", choose_experiments(["all"]))
    assert update_readme(new, measured=measured, readme=readme) == len(new) == 8
    assert read_table(measured, Measured) == new

    again = [replace(new[0], valid_acc_percent=12.5), replace(new[1], seed=9, run="ghost_new")]
    assert update_readme(again, measured=measured, readme=readme) == 9
    rows = read_table(measured, Measured)
    assert again[0] in rows and again[1] in rows and new[0] not in rows and new[1] in rows

    text = readme.read_text()
    assert text.startswith(f"# Before\n\n{BEGIN.format('first drop')}\n\n![best accuracy") and "\nold\n" not in text
    assert f"{BEGIN.format('table')}\n\n| id |" in text and text.endswith(f"{END.format('table')}\n\nAfter\n")
    assert (tmp_path / PICTURE).stat().st_size > 10_000
    lines = {line.split("]")[0][3:]: line for line in text.splitlines() if line.startswith("| [C-")}
    assert len(lines) == 58
    assert lines["C-14"].endswith("| 98.84 | 68.50 | 134 | 4,153,092 | 90.00 | 90.00 | 2 | 1 | stanford (1) |")
    assert lines["C-7"].endswith(
        "| 90.00<br>90.00 | 54.28<br>51.00 ± 1.41 | 2<br>100 | 1<br>2 | stanford (1)<br>cars, different task (2) |"
    )
    assert lines["C-10"].endswith(
        "; right boxes | – | – | – | – | 90.00 | 55.50 ± 0.71 | 100 | 2 | cars, different task (2) |"
    )
    assert lines["C-66"].endswith("= 0.98 | 98.72 | 70.46 | 90 | 3,041,412 |  |  |  |  |  |")
    assert "(2) cars, 5,792 / 1,372; no settings changed. Not the published task" in text and "A GPU; 32-true" in text
    verdict = "same order; 1 of 1 significant published differences confirmed"
    assert f"| augmentation | first sets | 2 of 5 | 1 | 0 | 0 | 1.00 | {verdict} |" in text.partition("\n(2) Did ")[2]
    assert text.partition("\n(1) Did ")[2].startswith("the order hold?\n\n| question | variants | measured | ")
    assert (
        "at most 0.10 percentage points (C-3, seed 0; 7 runs). Up to 2.50 are possible there, 0.28 on the published"
        in text
    )


def test_experiments_readme_is_what_the_command_writes():
    text = README.read_text(encoding="utf-8")
    for name, content in zip(NAMES, (first_drop_text(), table_text(read_table(MEASURED, Measured))), strict=True):
        written = re.search(f"{re.escape(BEGIN.format(name))}\n\n(.*)\n{re.escape(END.format(name))}", text, re.DOTALL)
        assert written[1] == content


def test_a_damaged_table_is_an_error_and_stays_as_it_is(output, tmp_path):
    measured, readme = tmp_path / "measured.csv", tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(ConfigError, match="'<!-- end: first drop -->' are missing"):
        update_readme([], measured=measured, readme=readme)
    measured.write_text("experiment,seed\nC-1,none\n")
    with pytest.raises(ConfigError, match="is damaged"):
        update_readme([], measured=measured, readme=readme)
    assert readme.read_text() == "no place"


def test_own_files_are_compared_with_the_study_and_each_other(tmp_path, capsys):
    mine = tmp_path / "mine.yml"
    mine.write_text(f"base: {EXPERIMENTS / 'base.yml'}\nexperiment_id: longer\ndescription: Trained for longer\n")
    folder = tmp_path / "reproduction"
    accuracies = {"C-1": (0.1, 0.12), "C-50": (0.70, 0.71), "longer": (0.80, 0.81)}
    for job in jobs_for(folder, "C-1", "C-50", str(mine), repeat=2):
        write_run(job, acc=accuracies[job.key.experiment][job.key.seed], photos=(5792, 1372))
    (comparison,) = reproduce.main(["C-1", "C-50", str(mine), "--report", "--output", str(tmp_path)])
    row = table(folder / "comparison.csv")[-1]
    assert (row["experiment"], row["description"], row["published_percent"]) == ("longer", "Trained for longer", "")
    pairs = {(pair["first"], pair["second"]): pair for pair in table(folder / "pairs.csv")}
    pair = pairs["C-50", "longer"]
    assert (pair["published_difference"], pair["measured_difference"], pair["measured_significant"]) == (
        "",
        "10.0",
        "yes",
    )
    margin = margin_of_error(*(comparison.accuracies[name] for name in ("C-50", "longer")))
    assert f"longer against C-50: +10.00 ± {margin:.2f} *" in capsys.readouterr().out
    assert f"| longer | C-50 | +10.00 \\* | {margin:.2f} |" in (folder / "comparison.md").read_text()

    reproduce.main(["--report", "--output", str(tmp_path)])
    assert "not asked for: runs of longer" in capsys.readouterr().out
    text = table_text(read_results(folder, choose_experiments([str(mine)]))[0])
    assert "\n| longer | Trained for longer | – | – | – | – | 90.00 | 80.50 ± 0.71 | 2 | 2 | cars, different" in text


def test_data_sets_that_differ_in_a_label_alone_have_a_heading_each(tmp_path):
    for digest in ("0123abcd", "4567cdef"):
        write_run(*jobs_for(tmp_path / "reproduction", "C-1", data=DataSet("cars", digest)))
    reproduce.main(["--report", "--output", str(tmp_path)])
    text = (tmp_path / "reproduction" / "comparison.md").read_text()
    assert text.count("## On cars, 20 / 8; no settings changed; data 0123abcd\n") == 1
    assert text.count("## On cars, 20 / 8; no settings changed; data 4567cdef\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the experiments"),
        (["C-1", "--repeat", "0"], "--repeat 0: expected at least 1"),
        (["C-1", "--shorten", "0"], "--divide-epochs 0: expected at least 1"),
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
    data = load_config(overrides=[f"data_path={tmp_path / 'cars'}"])

    def start(arguments: list[str], output: Path) -> Ended:
        if "evaluation" in arguments[1]:
            return Ended()
        if output.stem.startswith("C-2_"):
            output.write_text("error: no room\n")
            return Ended(1)
        (job,) = jobs_for(output.parents[1], output.stem.partition("_")[0], data=read_data_set(data))
        write_run(job)
        return Ended()

    monkeypatch.setattr(reproduce, "run_jobs", lambda jobs, folder: run_jobs(jobs, folder, start=start))
    with pytest.raises(RunError, match=r"(?s)1 runs failed; .*C-2 with seed 0: no room; see ") as caught:
        reproduce.main(["C-1", "C-2", "C-3", "-d", str(tmp_path / "cars"), "--output", str(tmp_path / "output")])
    assert caught.value.exit_code == 1
    compared = table(tmp_path / "output" / "reproduction" / "comparison.csv")
    assert [row["experiment"] for row in compared] == ["C-1", "C-3"]


@pytest.mark.slow
def test_the_command_trains_resumes_after_a_signal_evaluates_and_then_has_nothing_to_do(tmp_path, capsys):
    cars, output = tmp_path / "cars", tmp_path / "output"
    write_updated_release(cars, train_per_class=4, valid_per_class=3, image_sizes=[(40, 32), (32, 40)])
    changes = ["image_size=[32, 32]", "batch_size=4", "num_epochs=15", "early_stopping_patience=null", "num_workers=0",
               "accelerator=cpu", "trackers=[]", f"cache_path={tmp_path / 'cache'}"]  # fmt: skip
    settings = set_options(changes)
    command = ["C-12", "-d", str(cars), "--output", str(output), *settings]
    process = subprocess.Popen(
        [sys.executable, "reproduce.py", *command],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(output.glob("reproduction/ghost_*/metrics.csv")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command resumes the list" in printed, printed
    run = only_run(output / "reproduction")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted" and 1 <= len(rows(run)) < 15

    (comparison,) = reproduce.main(command)
    assert only_run(output / "reproduction") == run and len(rows(run)) == 15
    train.main(["--config", str(EXPERIMENTS / "C-12.yml"), "-d", str(cars), *settings,
                "--set", f"output_path={tmp_path / 'whole'}", "--set", "devices=1", "--set", "precision=32-true"])  # fmt: skip
    assert_same_run(run, only_run(tmp_path / "whole"))
    changed = "batch_size=4; early_stopping_patience=null; image_size=[32, 32]; num_epochs=15"
    assert str(comparison.setup) == f"cars, 12 / 9; {changed}"

    record, facts = (json.loads((run / name).read_text()) for name in ("run.json", "reproduction.json"))
    (row,) = table(output / "reproduction" / "comparison.csv")
    assert record["parameters"]["grayscale"] and float(row["measured_percent"]) == round(
        100 * record["best"]["best_valid_acc"], 4
    )
    in_batches = {(a / 4 + b / 4 + c) / 3 for a in range(5) for b in range(5) for c in (0, 1)
                  if a + b + c == round(9 * facts["checkpoint_acc"])}  # fmt: skip
    assert any(facts["checkpoint_acc_over_batches"] == pytest.approx(each) for each in in_batches)
    assert facts["device"] and row["device"] == facts["device"]

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    reproduce.main(command)
    assert "1 of 1 runs are already finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
