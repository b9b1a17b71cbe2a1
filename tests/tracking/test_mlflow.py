"""What MLflow is told of a run is what the run wrote down, and nothing that befalls the store reaches the training."""

import pickle
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from tests.support.tracked_runs import ROWS, STUDY_PARAMETERS, Run, import_of, points, stored_runs, warned
from utils.runs.folder import CONFIG, CURVES, METRICS
from utils.runs.lock import is_held
from utils.runs.metrics import COLUMNS, best_values
from utils.tracking import mlflow_store, trackers
from utils.tracking.mlflow_tracker import HALF_COPIED
from utils.tracking.trackers import check_trackers

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
PROJECT = Path(__file__).resolve().parents[2]


def test_mlflow_holds_what_the_run_wrote_down(output, caplog):
    run = Run(output).whole()
    (stored,) = stored_runs(output)
    assert set(run.record["parameters"]) == STUDY_PARAMETERS
    assert stored.data.params == {name: str(value) for name, value in run.record["parameters"].items()}
    for metric in COLUMNS[1:]:
        assert points(output, stored, metric) == [(row["epoch"], row[metric]) for row in ROWS]
    best = {name: value for name, value in stored.data.metrics.items() if name.startswith("best_")}
    assert best == run.record["best"]
    assert best["best_valid_loss_epoch"] == 1 and best["best_valid_acc"] == 0.7
    tags = stored.data.tags
    assert (stored.info.run_name, stored.info.status, tags["status"], tags["error"]) == (
        "ghost_20261123000000", "FINISHED", "completed", "",
    )  # fmt: skip
    assert (stored.info.start_time, stored.info.end_time - stored.info.start_time) == (1795406706000, 3723500)
    assert {name: tags[name] for name in ("experiment_id", "description", "tags", "runtime", "commit")} == {
        "experiment_id": "C-50", "description": "Milestones: 67 ü", "tags": "baseline, gray", "runtime": "local",
        "commit": "0123abc",
    }  # fmt: skip
    assert (tags["mlflow.note.content"], tags["version_torch"], tags["duration"]) == (
        "Milestones: 67 ü", "2.11.0", "3723.5",
    )  # fmt: skip
    client, _ = mlflow_store.open_store(output)
    assert {file.path for file in client.list_artifacts(stored.info.run_id)} == {CONFIG, CURVES}
    artifacts = Path(url2pathname(urlsplit(stored.info.artifact_uri).path))
    assert output in artifacts.parents and (artifacts / CURVES).read_bytes() == b"\x89PNG of the curves"
    assert warned(caplog) == [] and not is_held(run.folder)


@pytest.mark.parametrize(
    ("status", "shown"),
    [("early-stopped", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED"), ("running", "RUNNING")],
)
def test_how_a_run_ended_is_seen_in_the_table(output, status, shown):
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


def test_a_resumed_run_goes_on_where_it_is(output):
    first = Run(output, num_epochs=2)
    first.start()
    first.train(ROWS[0])
    first.train(ROWS[1])  # killed before the checkpoint of this epoch, which is trained again
    first.end("interrupted", "Interrupted: by SIGTERM")
    from mlflow.store.artifact import local_artifact_repo

    assert HALF_COPIED == local_artifact_repo._TEMP_ARTIFACT_PREFIX
    (stored,) = stored_runs(output)
    half_copied = Path(url2pathname(urlsplit(stored.info.artifact_uri).path), f"{HALF_COPIED}x1y2")
    half_copied.write_bytes(b"half of")
    again = Run(output, num_epochs=3)
    again.rows = first.rows
    again.start()
    assert not half_copied.exists() and half_copied.with_name(CONFIG).exists()
    (stored,) = stored_runs(output)
    assert (stored.info.status, stored.data.tags["status"], stored.data.tags["error"]) == ("RUNNING", "running", "")
    again.train(ROWS[1])
    again.train(ROWS[2])
    again.end()
    (stored,) = stored_runs(output)
    assert stored.data.params["max_num_epochs"] == "3" and len(stored.data.params) == len(STUDY_PARAMETERS)
    for metric in COLUMNS[1:]:
        assert points(output, stored, metric) == [(row["epoch"], row[metric]) for row in ROWS]
    assert stored.data.metrics["best_valid_acc_epoch"] == 2
    assert (stored.info.status, stored.data.tags["status"]) == ("FINISHED", "completed")


def test_a_metric_that_is_not_finite_is_logged_as_such(output):
    run = Run(output)
    run.start()
    run.train(ROWS[0] | {"train_loss": float("nan"), "valid_loss": float("inf")})
    run.end("failed", "RunError: the loss is not finite")
    (stored,) = stored_runs(output)
    assert str(points(output, stored, "train_loss")) == "[(0, nan)]"
    assert points(output, stored, "valid_loss")[0][1] > 1e300


def test_a_locked_store_stops_neither_an_epoch_nor_the_training(output, caplog, monkeypatch):
    monkeypatch.setattr(mlflow_store, "BUSY_SECONDS", 0.5)
    run = Run(output)
    run.start()
    run.train(ROWS[0])
    deadline = time.monotonic() + 10
    while not points(output, stored_runs(output)[0], "best_train_acc") and time.monotonic() < deadline:
        time.sleep(0.05)
    other = sqlite3.connect(output / mlflow_store.STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    run.train(ROWS[1])
    run.train(ROWS[2])
    assert time.monotonic() - began < 0.2
    run.end()
    other.execute("ROLLBACK")
    other.close()
    (message,) = warned(caplog)
    assert "mlflow: logging stopped" in message and "database is locked" in message and METRICS in message
    assert message.endswith("from which `python dashboard.py` takes the run up later")
    (stored,) = stored_runs(output)
    assert (stored.info.status, points(output, stored, "lr")) == ("RUNNING", [(0, 0.001)])

    import_of(output)
    (stored,) = stored_runs(output)
    assert (stored.info.status, stored.data.tags["status"]) == ("FINISHED", "completed")
    for metric in COLUMNS[1:]:
        assert points(output, stored, metric) == [(row["epoch"], row[metric]) for row in ROWS]
    assert {k: v for k, v in stored.data.metrics.items() if k.startswith("best_")} == best_values(ROWS)


def test_a_store_that_hangs_is_left_behind(output, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(mlflow_store, "BUSY_SECONDS", 3)
    other = sqlite3.connect(output / mlflow_store.STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    run = Run(output).whole()
    assert time.monotonic() - began < 2
    (message,) = warned(caplog)
    assert "mlflow: not all was logged within 0.2 s" in message
    run.trackers.trackers[0].thread.join(10)
    other.close()
    assert len(warned(caplog)) == 1


@pytest.mark.parametrize("content", [b"this is not a database, whatever its name says" * 100, None])
def test_a_damaged_store_is_named(tmp_path, caplog, content):
    store = tmp_path / mlflow_store.STORE
    store.mkdir() if content is None else store.write_bytes(content)
    Run(tmp_path).whole()
    (message,) = warned(caplog)
    reason = "unable to open database file" if content is None else "file is not a database"
    assert f"{store}: {reason}" in message and METRICS in message


CONFINED = """
import logging, sys
from pathlib import Path
sys.path[:0] = ["{project}", "{project}/tests"]
from tracked_runs import Run
from utils.tracking import mlflow_store
import subprocess
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
        pytest.skip("this machine lets nobody mount a file system of their own (unshare -rm)")
    small = tmp_path / "small"
    small.mkdir()
    script = CONFINED.format(project=PROJECT, read_only=output, small=small)
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "the training has ended\n"
    messages = done.stderr.splitlines()
    assert f"{output / 'mlflow.db'}: attempt to write a readonly database" in messages[0] and METRICS in messages[0]
    assert messages[1] == "No space left on device"
    assert "mlflow: logging stopped" in messages[2] and "disk" in messages[2] and METRICS in messages[2]
    assert len(messages) == 3


@pytest.mark.slow
def test_three_trainings_at_once_make_one_store(tmp_path):
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = ["{PROJECT}", "{PROJECT}/tests"]
from tracked_runs import ROWS, Run
run = Run(Path("{tmp_path}"), sys.argv[1])
for row in ROWS:
    run.train(row, told=False)
run.start()
run.end()
"""
    names = [f"ghost_{number}" for number in range(3)]
    command = [sys.executable, "-c", script]
    processes = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in names
    ]
    assert [process.communicate(timeout=100)[0] for process in processes] == ["", "", ""]
    runs = stored_runs(tmp_path)
    assert sorted(run.info.run_name for run in runs) == names
    assert len({run.info.experiment_id for run in runs}) == 1
    for run in runs:
        assert run.info.status == "FINISHED" and points(tmp_path, run, "valid_acc") == [(0, 0.02), (1, 0.5), (2, 0.7)]


class WithoutMLflow:
    """Finds nothing by the name of mlflow, as if it were not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "mlflow":
            raise ModuleNotFoundError("No module named 'mlflow'", name=name)


def test_mlflow_may_be_missing(tmp_path, caplog, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutMLflow(), *sys.meta_path])
    run = Run(tmp_path)
    check_trackers(run.config, "trackers")
    run.whole()
    (message,) = warned(caplog)
    assert "mlflow: not installed" in message and "pip install mlflow" in message
    assert not (tmp_path / mlflow_store.STORE).exists()


def test_a_copy_in_another_process_is_silent_and_its_epochs_are_logged_at_the_end(output):
    run = Run(output)
    run.start()
    copy = pickle.loads(pickle.dumps(run.trackers))
    for row in ROWS:
        run.train(row, told=False)
        copy.log_epoch(row)
    run.end()
    (stored,) = stored_runs(output)
    assert points(output, stored, "valid_loss") == [(0, 5.1), (1, 4.9), (2, 5.0)]
    assert stored.data.metrics["best_valid_loss"] == 4.9


@pytest.mark.parametrize("nothing", [None, []])
def test_no_tracker_no_store(tmp_path, nothing):
    Run(tmp_path, trackers=nothing).whole()
    assert not (tmp_path / mlflow_store.STORE).exists()
