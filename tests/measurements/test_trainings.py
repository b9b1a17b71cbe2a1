"""The table and the picture of whole trainings hold what the runs recorded."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from measurements.trainings import beside_published
from measurements.trainings import table as trained
from reproduction.published import read_published
from tests.support.small_runs import table
from utils.errors import ConfigError, RunError
from utils.runs.metrics import read_rows


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A guide with the two marks; trained.csv does not exist yet."""
    path = tmp_path / "results.md"
    path.write_text(f"before\n\n{trained.BEGIN}\nold\n{trained.END}\n\nafter\n")
    monkeypatch.setattr(trained, "RESULTS", path)
    monkeypatch.setattr(trained, "TRAINED", tmp_path / "trained.csv")
    return path


@pytest.fixture
def row() -> trained.Trained:
    return trained.Trained(
        experiment="mine", description="", seed=0, data="cars", train_images=28, valid_images=14, size="64×48", epochs=15,
        first_drop=None, best_percent=50.0, best_epoch=3, last_percent=42.86, raw_best_percent=None, raw_last_percent=None,
        top5_percent=100.0, parameters=348967, multiply_adds=2697280, latency_ms=0.33, hours=0.1, device="a CPU",
        torch="2.14", commit="unknown", date="2026-11-26", run="a",
    )  # fmt: skip


@pytest.mark.slow  # measures a latency
def test_a_run_is_added_once_with_its_figures(trained_run, results, tmp_path):
    trained_run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    seconds = [36_000, *[360] * 14]  # it was stopped for a while in its first epoch
    lines = [f"{epoch},{value},1" for epoch, value in enumerate(seconds)]
    (trained_run / "speed.csv").write_text("\n".join(["epoch,seconds,images_per_second", *lines, ""]))
    (row,) = trained.main([str(trained_run)])
    assert row.hours == 1.5
    twin = Path(shutil.copytree(trained_run, tmp_path / "twin"))
    first, second = trained.read_runs([trained_run, twin], [replace(row, latency_ms=123.0)])
    assert first.latency_ms == second.latency_ms < 123  # measured once for both, and anew
    told = replace(row, run="another", latency_ms=123.0)
    assert trained.read_runs([twin], [told])[0].latency_ms == 123
    assert trained.read_runs([twin], [replace(told, device="another")])[0].latency_ms < 123
    epochs = read_rows(trained_run / "metrics.csv")
    accuracies = [epoch["valid_acc"] for epoch in epochs]
    assert row.best_percent == round(100 * max(accuracies), 2)
    assert row.best_epoch == accuracies.index(max(accuracies))
    assert row.last_percent == round(100 * accuracies[-1], 2)
    assert row.top5_percent == round(100 * epochs[row.best_epoch]["valid_top5_acc"], 2)
    assert (row.epochs, row.size, row.valid_images, row.raw_best_percent) == (15, "64×48", 14, None)
    assert row.latency_ms > 0
    assert trained.read_table(trained.TRAINED, trained.Trained) == [row]  # every value survives the file
    assert trained.main([]) == [row]
    (kept,) = table(results.parent / "trained.csv")
    assert kept["run"] == trained_run.name
    text = results.read_text()
    assert text.startswith("before\n") and text.endswith("\n\nafter\n") and "old" not in text
    assert f"{row.best_percent:.2f} ({row.interval[0]:.2f} … {row.interval[1]:.2f})" in text
    assert (results.parent / trained.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_published_results_stand_beside_their_own_experiment_only(row):
    rows = [replace(row, experiment="C-50", first_drop=67), replace(row, raw_best_percent=50.0, raw_last_percent=40.0)]
    first, second = trained.table(rows, read_published()).splitlines()[2:4]
    assert "| 67 |" in first and "| 83.79 |" in first
    assert "83.79" not in second and "| 50.00 / 40.00 |" in second


def test_labels_that_would_overlap_become_one():
    points = [(24, 6.6, "5"), (57, 18.0, "6"), (22, 7.1, "9"), (57, 18.5, "10"), (57, 29.6, "12"), (30, 18.0, "13")]
    found = trained.labels(points, 3)
    assert found == [("5, 9", (24, 6.6)), ("6, 10", (57, 18.0)), ("12", (57, 29.6)), ("13", (30, 18.0))]


def test_runs_that_differ_in_their_first_drop_are_a_series(row, tmp_path):
    runs = [
        replace(row, run=str(drop), first_drop=drop, best_percent=value) for drop, value in ((34, 12.0), (17, 10.3))
    ]
    others = [replace(runs[0], **each) for each in ({"experiment": "alone"}, {"seed": 1}, {"data": "other"})]
    series = trained.drop_series([*runs, row, *others])
    ((name, found),) = series.items()
    assert name == "mine, 64×48, cars, 28 / 14, seed 0"
    assert [run.first_drop for run in found] == [17, 34]
    assert trained.slope_text(found) == "10.30 % (drop at 17), 12.00 % (drop at 34); +0.100 points an epoch in between"
    assert trained.slope_text(found) in trained.table(runs, read_published())
    assert trained.DROPS not in trained.table([row], read_published())
    trained.draw_drops(series, tmp_path / trained.DROPS)
    assert (tmp_path / trained.DROPS).read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_added_changes_nothing(trained_run, results, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text('{"status": "running"}')
    with pytest.raises(RunError, match="not finished: status running"):
        trained.main([str(unfinished)])
    results.write_text("no marks")
    with pytest.raises(ConfigError, match="are missing"):
        trained.main([str(trained_run)])
    assert not (results.parent / "trained.csv").exists()
    results.write_text(f"{trained.BEGIN}{trained.END}")
    (results.parent / "trained.csv").write_text("run\nmine\n")
    with pytest.raises(ConfigError, match=r"trained\.csv is damaged"):
        trained.main([])


def test_a_run_beside_the_published_curve(trained_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"experiment_id": "C-50"}')
    (run / "config.yml").write_text("image_size: [64, 48]\ndata_path: /data/cars\n")
    metrics = [(0, 0.1, 0.001), (1, 0.1, 0.001), (2, 0.4, 0.0001), (3, 0.3, 0.0001)]
    columns = "epoch,train_loss,train_acc,valid_loss,valid_acc,lr,train_top5_acc,valid_top5_acc,valid_mean_class_acc\n"
    lines = [f"{epoch},1,0.5,1,{accuracy},{rate},1,1,1\n" for epoch, accuracy, rate in metrics]
    (run / "metrics.csv").write_text(columns + "".join(lines))
    curves = tmp_path / "curves.csv"
    curves.write_text(
        "id,epoch,train_loss,train_acc,valid_loss,valid_acc,lr\nC-50,0,1,0.2,1,0.25,0.001\nC-1,0,1,1,1,1,1\n"
    )
    picture = tmp_path / "picture.png"
    assert beside_published.main([str(run), str(curves), "--output", str(picture)]) == [
        "C-50 published: best 25.00 % in epoch 0 of 1; the learning rate never dropped",
        "C-50 measured: best 40.00 % in epoch 2 of 4, 0 after the first drop; mean of 3 epochs before it 10.00 %, after it "
        "35.00 %",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    (run / "metrics.csv").write_text(columns + "".join(lines[:2]).replace("0.001", "0.0009", 1))
    assert beside_published.main([str(run), str(curves), "--output", str(picture)])[1].endswith("never dropped")
    (run / "run.json").write_text('{"experiment_id": "C-2"}')
    with pytest.raises(ConfigError, match="no curve of 'C-2'"):
        beside_published.main([str(run), str(curves)])
    with pytest.raises(ConfigError, match=r"run cannot be read: Is a directory"):
        beside_published.main([str(run), str(run)])
    curves.write_text("id,epoch\nC-2,0\n")
    with pytest.raises(
        ConfigError, match=r"curves\.csv: expected a CSV file with numbers in the columns id, epoch, train_acc"
    ):
        beside_published.main([str(run), str(curves)])
    (run / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json names no experiment_id"):
        beside_published.main([str(run), str(curves)])
