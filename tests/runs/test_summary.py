"""The summary of a run, also of one that did not learn."""

from tests.support.small_runs import run
from utils.runs.folder import BEST, LAST, METRICS, read_record, write_record
from utils.runs.metrics import read_rows
from utils.runs.summary import summarize


def test_a_run_without_a_finite_validation_loss_ends_with_a_summary(cars, tmp_path, capsys):
    folder = run(
        cars, tmp_path, "optimizer=SGD", "optimizer_params={lr: 1.0e+30}", "lr_scheduler=null", "lr_scheduler_params=null",
        "stop_on_nonfinite_loss=False",
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert read_record(folder)["status"] == "completed" and not (folder / BEST).exists()
    assert lines[0].startswith("completed after 2 epochs in 0:00:")
    assert "  lowest validation loss           –     it was NaN or infinite in every epoch" in lines
    assert f"  files in {folder}: curves.png, metrics.csv, {LAST}" in lines
    assert lines[-1].startswith(f"  next: python evaluate.py {folder / LAST}, ")


def test_the_summary_gives_each_best_value_with_its_epoch(four_epochs):
    rows, lines = read_rows(four_epochs / METRICS), summarize(four_epochs).splitlines()
    lowest = min(rows, key=lambda row: row["valid_loss"])
    highest = max(rows, key=lambda row: row["train_acc"])
    assert lines[4].split() == ["best", "training", "accuracy", f"{100 * highest['train_acc']:.2f}", "%", "in", "epoch",
                                str(highest["epoch"])]  # fmt: skip
    assert lines[5].endswith(
        f"{lowest['valid_loss']:.4f}     in epoch {lowest['epoch']}, with {100 * lowest['valid_acc']:.2f} % accuracy: best.ckpt"
    )
    assert lines[7].split() == ["chance", "level", "25.00", "%"]


def test_the_summary_of_a_run_without_an_epoch(tmp_path):
    write_record(tmp_path, {"best": {}})
    assert summarize(tmp_path) == f"{tmp_path}: no epoch was completed"
