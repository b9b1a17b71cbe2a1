"""The dashboard shows the runs that lie in the folder, whatever has befallen its store."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dashboard import Watch, show_on_colab
from tests.support.tracked_runs import ROWS, Run, import_of, points, stored_runs, warned
from utils.errors import DamagedStore, RunError
from utils.runs.folder import SPEED, read_record, write_record
from utils.runs.lock import hold
from utils.tracking import mlflow_store

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
PROJECT = Path(__file__).resolve().parents[2]


def test_the_dashboard_says_what_to_do_with_a_damaged_store(output):
    write_record(Run(output, trackers=[]).folder, {"name": "any"})
    store = output / mlflow_store.STORE
    content = bytearray(store.read_bytes())
    content[200:] = b"\xff" * (len(content) - 200)  # still a database by its first page's header
    for damage, reason in ((bytes(content), "malformed"), (b"this is no database " * 200, "file is not a database")):
        store.write_bytes(damage)
        with pytest.raises(DamagedStore, match=f"{reason}; delete this file, and .* from the run folders$"):
            mlflow_store.open_store(output)
    with pytest.raises(RunError) as said:
        show_on_colab("--output", str(output))
    (message,) = (line for line in str(said.value).splitlines() if mlflow_store.STORE in line)
    assert message.startswith(f"error: {store}: file is not a database; delete this file")
    assert "Traceback" not in str(said.value) and "as they were" not in str(said.value)


def test_the_dashboard_takes_up_what_the_store_does_not_have(output, caplog):
    copied = Run(output, "copied", trackers=[])
    copied.whole()
    killed = Run(output, "killed")
    write_record(killed.folder, killed.record)
    killed.train(ROWS[0])
    (killed.folder / SPEED).write_text("epoch,seconds,images_per_second\n0,61.5,40.0\n1,60.5,41.0\n", encoding="utf-8")
    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, "{PROJECT}")
from utils.runs.lock import hold
lock = hold(Path("{killed.folder}"))
print("held", flush=True)
time.sleep(60)
"""
    training = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert training.stdout.readline() == "held\n"
    (output / "broken").mkdir()
    write_record(output / "broken", {"name": "broken", "run_id": "x", "status": "completed"})
    import_of(output)
    assert {run.info.run_name for run in stored_runs(output)} == {"copied"}  # the other one is being trained
    assert [f"{output / 'broken'} is damaged" in message for message in warned(caplog)] == [True]

    training.send_signal(signal.SIGKILL)
    training.wait()
    training.stdout.close()
    shutil.rmtree(output / "broken")
    import_of(output)
    runs = {run.info.run_name: run for run in stored_runs(output)}
    assert (runs["killed"].info.status, runs["killed"].data.tags["status"]) == ("KILLED", "killed")
    assert runs["killed"].data.metrics["valid_loss"] == 5.1
    assert runs["killed"].info.end_time - runs["killed"].info.start_time == 122_000
    assert (runs["copied"].info.status, runs["copied"].data.tags["status"]) == ("FINISHED", "completed")
    assert runs["copied"].data.params == {name: str(value) for name, value in copied.record["parameters"].items()}
    assert points(output, runs["copied"], "valid_acc") == [(0, 0.02), (1, 0.5), (2, 0.7)]
    assert read_record(killed.folder)["status"] == "running"  # what the training wrote stays

    client, _ = mlflow_store.open_store(output)
    client.delete_run(runs["copied"].info.run_id)
    import_of(output)
    assert {run.info.run_name for run in stored_runs(output)} == {"killed"}  # deleted by hand, and stays so

    killed.rows = [ROWS[0]]
    killed.start()
    assert stored_runs(output)[0].info.status == "RUNNING"
    killed.train(ROWS[1])
    killed.end()
    (stored,) = stored_runs(output)
    assert (stored.info.status, points(output, stored, "valid_acc")) == ("FINISHED", [(0, 0.02), (1, 0.5)])


def test_an_open_dashboard_looks_again(output, caplog, monkeypatch):
    monkeypatch.setattr(mlflow_store, "BUSY_SECONDS", 0.1)
    run = Run(output, "killed")
    write_record(run.folder, run.record)
    lock = hold(run.folder)
    watch = Watch(output)
    watch.look()
    assert stored_runs(output) == []  # it is being trained
    lock.release()
    watch.look_again()
    assert [stored.info.status for stored in stored_runs(output)] == ["KILLED"]

    other = sqlite3.connect(output / mlflow_store.STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    watch.look_again()  # nothing has changed, and the store is not even opened
    assert warned(caplog) == []
    Run(output, "without a store", trackers=[]).whole()
    watch.look_again()
    watch.look_again()
    (message,) = warned(caplog)
    assert "mlflow.db: database is locked; the runs are shown as they were" in message
    other.execute("ROLLBACK")
    other.close()
    watch.look_again()
    assert {stored.info.run_name for stored in stored_runs(output)} == {"killed", "without a store"}


def test_a_store_that_cannot_be_written_to_is_said_to_the_dashboard(output, monkeypatch):
    monkeypatch.setattr(mlflow_store, "BUSY_SECONDS", 0.1)
    other = sqlite3.connect(output / mlflow_store.STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match=r"mlflow\.db: database is locked"):
        import_of(output)
    other.close()
