"""MLflow has what the run wrote, and nothing that happens to the store reaches the training."""

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from tests.support.tracked_runs import ROWS, STUDY_PARAMETERS, Run, points, stored_runs, warnings_of
from utils.machine import PROJECT
from utils.runs.folder import BEST, CONFIG, CURVES, METRICS, write_record
from utils.runs.lock import is_held
from utils.runs.metrics import COLUMNS, best_values
from utils.tracking import mlflow as tracking
from utils.tracking import trackers
from utils.tracking.mlflow import STORE, import_runs, log_artifact, open_store

pytest.importorskip("mlflow", reason="mlflow is not installed")


def best_of(stored) -> dict[str, float]:
    return {name: value for name, value in stored.data.metrics.items() if name.startswith("best_")}


def assert_has(output, stored, rows) -> None:
    for metric in COLUMNS[1:]:
        assert points(output, stored, metric) == [(row["epoch"], row[metric]) for row in rows]
    assert best_of(stored) == best_values(rows)


def artifacts_of(output, stored) -> Path:
    folder = Path(url2pathname(urlsplit(stored.info.artifact_uri).path))
    assert output in folder.parents
    return folder


def test_mlflow_has_what_the_run_wrote(output, caplog):
    run = Run(output).whole()
    (stored,) = stored_runs(output)
    assert set(run.record["parameters"]) == STUDY_PARAMETERS
    assert stored.data.params == {name: str(value) for name, value in run.record["parameters"].items()}
    assert_has(output, stored, ROWS)
    assert best_of(stored)["best_valid_loss_epoch"] == 1 and best_of(stored)["best_valid_acc"] == 0.7
    tags = stored.data.tags
    assert (stored.info.run_name, stored.info.status, tags["status"], tags["error"]) == (
        "ghost_20261123000000", "FINISHED", "completed", "",
    )  # fmt: skip
    assert (stored.info.start_time, stored.info.end_time - stored.info.start_time) == (1795406706000, 3723500)
    expected = {
        "experiment_id": "C-50", "description": "Milestones: 67 ü", "tags": "baseline, gray", "runtime": "local",
        "commit": "0123abc", "mlflow.note.content": "Milestones: 67 ü", "version_torch": "2.11.0", "duration": "3723.5",
    }  # fmt: skip
    assert {name: tags[name] for name in expected} == expected
    assert {path.name for path in artifacts_of(output, stored).iterdir()} == {CONFIG, CURVES}
    assert (artifacts_of(output, stored) / CURVES).read_bytes() == b"\x89PNG of the curves"
    assert warnings_of(caplog) == [] and not is_held(run.folder)
    # Only the run, the store and its files; nothing beside the folder, whatever its name.
    assert {path.name for path in output.iterdir()} == {run.folder.name, STORE, f"{STORE}.lock", "mlflow_artifacts"}
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("status", "shown"),
    [("early-stopped", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED"), ("running", "RUNNING")],
)
def test_the_table_shows_how_a_run_ended(output, status, shown):
    run = Run(output)
    run.start()
    if status == "running":
        assert is_held(run.folder)
    else:
        run.end(status, "DataError: car_ims/000001.jpg is damaged")
    (stored,) = stored_runs(output)
    assert (stored.info.status, stored.data.tags["status"]) == (shown, status)
    assert stored.data.tags["error"] == ("" if status == "running" else "DataError: car_ims/000001.jpg is damaged")
    if status == "running":
        run.end()


def test_the_trials_of_a_search_stand_below_one_run(output):
    runs = [Run(output, name) for name in ("ghost_1", "ghost_2", "ghost_3")]
    for run in runs[:2]:
        run.record["tags"] = ["mine", "search lr-decay 0123abcd", "trial 0"]
    for run in runs:
        run.start()
        run.end()
    found = {run.info.run_name: run for run in stored_runs(output)}
    assert set(found) == {"lr-decay", "ghost_1", "ghost_2", "ghost_3"} and found["lr-decay"].info.status == "FINISHED"
    parents = [found[run.folder.name].data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents == [found["lr-decay"].info.run_id] * 2 + [None]


def resumed(first: Run, output: Path, **settings) -> Run:
    run = Run(output, **settings)
    run.rows = list(first.rows)
    run.start()
    return run


@pytest.mark.parametrize("more", [{}, {"valid_raw_acc": 0.25, "train_total_loss": 6.0}], ids=["study", "recipe"])
def test_a_resumed_run_continues_its_mlflow_run(output, more):
    first, (row, *others) = Run(output), [row | more for row in ROWS]
    first.start()
    first.train(row)
    first.train(others[0])  # killed before its checkpoint, so it is trained again, with the same result
    first.end("interrupted", "Interrupted: by SIGTERM")
    client, _ = open_store(output)
    (old,) = stored_runs(output)
    client.set_tag(old.info.run_id, "mine", "a note")
    again = resumed(first, output)
    (stored,) = stored_runs(output)
    assert (stored.info.status, stored.data.tags["status"], stored.data.tags["error"]) == ("RUNNING", "running", "")
    again.train(others[0])
    again.train(others[1])
    again.end()
    (stored,) = stored_runs(output)
    assert_has(output, stored, [row, *others])
    assert (stored.info.run_id, stored.data.tags["mine"], stored.info.status) == (old.info.run_id, "a note", "FINISHED")


@pytest.mark.parametrize(
    ("discarded", "settings"), [({"valid_loss": 4.0, "valid_acc": 0.95}, {}), ({}, {"num_epochs": 3})]
)
def test_mlflow_has_the_epochs_and_parameters_that_count_after_a_resume(output, discarded, settings):
    first = Run(output, num_epochs=2)
    first.start()
    first.train(ROWS[0])
    for row in ROWS[1:]:
        first.train(row | discarded)  # killed before the next checkpoint, so these are trained again
    first.end("interrupted")
    (old,) = stored_runs(output)
    open_store(output)[0].set_tag(old.info.run_id, "mine", "a note")
    again = resumed(first, output, **settings)
    again.train(ROWS[1])
    again.train(ROWS[2])
    again.end()
    (stored,) = stored_runs(output)  # one run in the table
    assert_has(output, stored, ROWS)
    assert stored.data.params == {name: str(value) for name, value in again.record["parameters"].items()}
    assert (stored.info.run_name, stored.data.tags["mine"]) == (old.info.run_name, "a note")
    assert (artifacts_of(output, stored) / CURVES).is_file()
    import_runs(output)
    assert len(stored_runs(output)) == 1


def test_metrics_that_are_not_finite_are_logged_once(output):
    run = Run(output)
    run.start()
    run.train(ROWS[0] | {"train_loss": math.nan, "valid_loss": math.inf})
    run.end("failed", "RunError: the loss is not finite")
    (stored,) = stored_runs(output)
    assert str(points(output, stored, "train_loss")) == "[(0, nan)]"
    assert points(output, stored, "valid_loss")[0][1] > 1e300
    again = resumed(run, output)
    again.end()
    assert [each.info.run_id for each in stored_runs(output)] == [stored.info.run_id]  # NaN does not differ from NaN
    assert str(points(output, stored, "train_loss")) == "[(0, nan)]"


def test_the_checkpoint_and_the_export_are_logged_if_configured(output):
    run = Run(output, mlflow_artifacts=False)
    (run.folder / BEST).parent.mkdir()
    (run.folder / BEST).write_bytes(b"weights")
    run.whole()
    (stored,) = stored_runs(output)
    assert not (artifacts_of(output, stored) / BEST).exists()
    run = Run(output, mlflow_artifacts=True)
    run.start()
    run.end()
    assert (artifacts_of(output, stored) / BEST).read_bytes() == b"weights"
    (run.folder / "best.onnx").write_bytes(b"graph")
    log_artifact(run.folder, run.folder / "best.onnx")
    assert (artifacts_of(output, stored) / "best.onnx").read_bytes() == b"graph"
    other = Run(output, "never logged", trackers=[])
    write_record(other.folder, other.record)
    log_artifact(other.folder, run.folder / "best.onnx")  # no run there, no error
    assert len(stored_runs(output)) == 1
    (output / "downloads" / "models").mkdir(parents=True)
    log_artifact(output / "downloads" / "models", run.folder / "best.onnx")  # of a checkpoint outside a run
    assert not (output / "downloads" / STORE).exists()


def test_after_a_move_nothing_is_written_to_the_old_place(tmp_path):
    Run(tmp_path / "old").whole()
    (tmp_path / "old").rename(tmp_path / "new")
    Run(tmp_path / "new", "ghost_2").whole()
    assert not (tmp_path / "old").exists()
    for run in stored_runs(tmp_path / "new"):
        assert (artifacts_of(tmp_path / "new", run) / "config.yml").is_file()


def test_a_copy_of_a_run_is_named_and_does_not_take_its_place(output, caplog):
    run = Run(output).whole()
    shutil.copytree(run.folder, output / "ghost_copy")
    longer = run.record | {"seconds": 9999.0}
    write_record(output / "ghost_copy", longer)
    (before,) = stored_runs(output)
    for _ in range(2):
        import_runs(output)
        assert [each.info.run_id for each in stored_runs(output)] == [before.info.run_id]
    assert f"{output / 'ghost_copy'} is a copy of {run.folder}, so it is not shown" in caplog.text


def test_a_locked_store_stops_neither_an_epoch_nor_the_training(output, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.3)
    run = Run(output)
    run.start()
    other = sqlite3.connect(output / STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for row in ROWS:
        run.train(row)
    run.end()
    (message,) = warnings_of(caplog)
    assert "mlflow: not everything was logged within 0.3 s; the training is not affected" in message
    assert message.endswith(f"{METRICS} has every epoch; `python dashboard.py` adds what is missing")
    other.execute("ROLLBACK")
    other.close()
    run.trackers.threads[0].join(60)  # MLflow tries again within 20 s
    assert len(warnings_of(caplog)) == 1
    import_runs(output)
    (stored,) = stored_runs(output)
    assert (stored.info.status, stored.data.tags["status"]) == ("FINISHED", "completed")
    assert_has(output, stored, ROWS)


def test_a_store_that_is_locked_at_the_start_is_named(output, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "BUSY_SECONDS", 0.2)
    other = sqlite3.connect(output / STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    Run(output).whole()
    other.close()
    (message,) = warnings_of(caplog)
    assert f"mlflow: logging stopped: {output / STORE}: database is locked" in message


@pytest.mark.parametrize("content", [b"this is not a database, whatever its name" * 100, None])
def test_a_damaged_store_is_named(tmp_path, caplog, content):
    store = tmp_path / STORE
    store.mkdir() if content is None else store.write_bytes(content)
    Run(tmp_path).whole()
    (message,) = warnings_of(caplog)
    assert f"{store}: {'unable to open database file' if content is None else 'file is not a database'}" in message


CONFINED = """
import logging, subprocess, sys
from pathlib import Path
sys.path.insert(0, "{project}")
from tests.support.tracked_runs import Run
logging.basicConfig(format="%(message)s")
read_only, small = Path("{read_only}"), Path("{small}")
subprocess.run(["mount", "--bind", read_only / "mlflow.db", read_only / "mlflow.db"], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", read_only / "mlflow.db"], check=True)
Run(read_only).whole()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", small], check=True)
(small / "mlflow.db").write_bytes((read_only / "mlflow.db").read_bytes())
run = Run(small)
run.start()
with (small / "other").open("wb", 0) as file:
    try:
        while True: file.write(bytes(4096))
    except OSError as error:
        print(error.strerror, file=sys.stderr)
run.trackers.end(run.record | {{"status": "completed"}}, [])
print("the training has ended")
"""


@pytest.mark.slow
def test_a_read_only_store_and_a_full_disk(output, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounting a file system (unshare -rm)")
    small = tmp_path / "small"
    small.mkdir()
    script = CONFINED.format(project=PROJECT, read_only=output, small=small)
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "the training has ended\n"
    read_only, full, stopped = done.stderr.splitlines()
    assert f"{output / STORE}: attempt to write a readonly database" in read_only and METRICS in read_only
    assert full == "No space left on device"
    assert "mlflow: logging stopped" in stopped and "disk" in stopped and METRICS in stopped


@pytest.mark.slow
def test_three_trainings_at_once_create_one_store(tmp_path):
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, "{PROJECT}")
from tests.support.tracked_runs import Run
Run(Path("{tmp_path}"), sys.argv[1]).whole()
"""
    names = [f"ghost_{number}" for number in range(3)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name in names
    ]
    assert [process.communicate(timeout=100)[0] for process in processes] == ["", "", ""]
    runs = stored_runs(tmp_path)
    assert sorted(run.info.run_name for run in runs) == names
    for run in runs:
        assert run.info.status == "FINISHED"
        assert_has(tmp_path, run, ROWS)


@pytest.mark.parametrize("nothing", [None, []])
def test_no_tracker_no_store(tmp_path, nothing):
    Run(tmp_path, trackers=nothing).whole()
    assert not (tmp_path / STORE).exists()


def test_a_tracking_server_replaces_the_local_store(tmp_path, empty_store, monkeypatch, caplog):
    """Any address that MLflow takes; test_dashboard_browser.py uses a real server."""
    shutil.copy(empty_store, tmp_path / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Mine")
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "output"
    run = Run(output).whole()
    assert [path.name for path in output.iterdir()] == [run.folder.name] and warnings_of(caplog) == []
    client, experiment = open_store(output)
    assert client.get_experiment(experiment).name == "Mine"
    (stored,) = stored_runs(output)
    assert_has(output, stored, ROWS)


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary-5d@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Run(tmp_path).whole()
    (message,) = warnings_of(caplog)
    assert "mlflow: logging stopped: http://127.0.0.1:9: " in message and "canary-5d" not in message
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ  # MLflow's own limit is two minutes
