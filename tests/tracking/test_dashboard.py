"""The dashboard shows the runs in the folder, whatever state its store is in."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

import dashboard
from dashboard import StoreUpdater, free_port, show_on_colab
from tests.support.tracked_runs import ROWS, STUDY_PARAMETERS, Run, points, stored_runs, warnings_of
from utils.cli import run_command
from utils.errors import DamagedStore, RunError
from utils.machine import PROJECT
from utils.runs.folder import SPEED, read_record, write_record
from utils.runs.lock import hold
from utils.runs.metrics import best_values
from utils.tracking import mlflow as tracking
from utils.tracking.mlflow import STORE, import_runs, open_store

pytest.importorskip("mlflow", reason="mlflow is not installed")


@pytest.mark.slow
def test_a_damaged_store_gets_one_message_with_the_remedy(output):
    write_record(Run(output, trackers=[]).folder, {"name": "any"})
    store = output / STORE
    content = bytearray(store.read_bytes())
    content[200:] = b"\xff" * (len(content) - 200)  # its header is still that of a database
    for damage, reason in ((bytes(content), "malformed"), (b"this is no database " * 200, "file is not a database")):
        store.write_bytes(damage)
        with pytest.raises(DamagedStore, match=f"{reason}; delete this file, and .* from the run folders$"):
            open_store(output, to_write=True)
    with pytest.raises(RunError) as error:
        show_on_colab("--output", str(output))
    (message,) = (line for line in str(error.value).splitlines() if STORE in line)
    assert message.startswith(f"error: {store}: file is not a database; delete this file")
    assert "Traceback" not in str(error.value) and "not up to date" not in str(error.value)


def test_the_dashboard_updates_a_run_that_ended_again_in_the_same_way(output):
    """As a trial of a search, which is interrupted at each rung."""
    trial = Run(output, "trial", trackers=[])
    trial.start()
    trial.train(ROWS[0])
    trial.end("interrupted", "a rung")
    import_runs(output)
    (before,) = stored_runs(output)
    trial.train(ROWS[1])
    write_record(trial.folder, trial.record | {"seconds": 5000.0, "best": best_values(ROWS[:2])})
    import_runs(output)
    (stored,) = stored_runs(output)
    assert points(output, stored, "valid_acc") == [(0, 0.02), (1, 0.5)]
    assert (stored.data.metrics["best_valid_acc"], stored.data.tags["duration"]) == (0.5, "5000.0")
    assert stored.info.run_id == before.info.run_id
    import_runs(output)
    assert points(output, stored, "valid_acc") == [(0, 0.02), (1, 0.5)]


def test_the_dashboard_adds_the_runs_that_the_store_does_not_have(output, caplog):
    copied = Run(output, "copied", trackers=[])
    copied.whole()
    killed = Run(output, "killed")
    write_record(killed.folder, killed.record)
    killed.train(ROWS[0])
    (killed.folder / SPEED).write_text("epoch,seconds,images_per_second\n0,61.5,40.0\n1,60.5,41.0\n", encoding="utf-8")
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, "{PROJECT}")
from utils.runs.lock import hold
lock = hold(Path("{killed.folder}"))
print("locked", flush=True)
input()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout.readline() == "locked\n"
        (output / "broken").mkdir()
        write_record(output / "broken", {"name": "broken", "run_id": "x", "status": "completed"})
        import_runs(output)
        assert {run.info.run_name for run in stored_runs(output)} == {"copied"}  # the other one is still training
        write_record(output / "broken", {"name": "broken", "run_id": "x", "status": "completed", "parameters": 1})
        import_runs(output)
        assert [f"{output / 'broken'} is damaged" in message for message in warnings_of(caplog)] == [True] * 2
        training.send_signal(signal.SIGKILL)
    shutil.rmtree(output / "broken")
    import_runs(output)
    runs = {run.info.run_name: run for run in stored_runs(output)}
    assert (runs["killed"].info.status, runs["killed"].data.tags["status"]) == ("KILLED", "killed")
    assert runs["killed"].data.metrics["valid_loss"] == 5.1
    assert runs["killed"].info.end_time - runs["killed"].info.start_time == 122_000
    assert (runs["copied"].info.status, runs["copied"].data.tags["status"]) == ("FINISHED", "completed")
    assert runs["copied"].data.params == {name: str(value) for name, value in copied.record["parameters"].items()}
    assert points(output, runs["copied"], "valid_acc") == [(0, 0.02), (1, 0.5), (2, 0.7)]
    assert read_record(killed.folder)["status"] == "running"  # the run folder is only read

    open_store(output)[0].delete_run(runs["copied"].info.run_id)
    import_runs(output)
    assert {run.info.run_name for run in stored_runs(output)} == {"killed"}  # a run that someone deleted stays deleted

    killed.rows = [ROWS[0]]
    killed.start()
    assert stored_runs(output)[0].info.status == "RUNNING"
    killed.train(ROWS[1])
    killed.end()
    (stored,) = stored_runs(output)
    assert (stored.info.status, points(output, stored, "valid_acc")) == ("FINISHED", [(0, 0.02), (1, 0.5)])


def test_an_open_dashboard_adds_new_runs(output, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "BUSY_SECONDS", 0.1)
    run = Run(output, "killed")
    write_record(run.folder, run.record)
    lock = hold(run.folder)
    updater = StoreUpdater(output)
    updater.update()
    assert stored_runs(output) == []  # it is training
    lock.release()
    updater.try_update()
    assert [stored.info.status for stored in stored_runs(output)] == ["KILLED"]

    other = sqlite3.connect(output / STORE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    updater.try_update()  # nothing has changed, so the store is not opened
    assert warnings_of(caplog) == []
    Run(output, "without a store", trackers=[]).whole()
    updater.try_update()
    updater.try_update()
    (message,) = warnings_of(caplog)
    assert "mlflow.db: database is locked; the table is not up to date" in message
    other.execute("ROLLBACK")
    other.close()
    updater.try_update()
    assert {stored.info.run_name for stored in stored_runs(output)} == {"killed", "without a store"}


def test_the_table_begins_with_the_best_metrics_and_the_parameters_that_differ(output):
    for dropout in (0.1, 0.2):
        Run(output, f"dropout {dropout}", trackers=[], dropout=dropout).whole()
    (output / "broken").mkdir()
    write_record(output / "broken", {"parameters": ["no", "dictionary"]})
    address = dashboard.table(output)
    client, experiment = open_store(output)
    view = json.loads(client.get_experiment(experiment).tags["mlflow.sharedViewState.runs"])
    columns = view["selectedColumns"]
    assert [name for name in columns if name.startswith("params.")][:2] == ["params.`dropout`", "params.`runtime`"]
    assert columns.index("metrics.`best_valid_acc`") < columns.index("params.`dropout`")
    assert {f"params.`{name}`" for name in STUDY_PARAMETERS} < set(columns)
    assert address == f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=runs"


def test_two_dashboards_do_not_take_the_same_port():
    """Neither listens in the first seconds, while MLflow is imported."""
    with free_port(5600) as first, free_port(5600) as second:
        assert first != second
    with free_port(first) as again:
        assert again == first


@pytest.mark.parametrize("port", ["-1", "0", "65536", "70000"])
def test_a_port_that_does_not_exist_is_refused(output, port, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", "--port", port, "--output", str(output)])
    assert run_command(dashboard.main) == 2
    assert capsys.readouterr().err == f"error: --port {port}: expected a port from 1 to 65535\n"


def test_a_folder_without_runs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", "--output", str(tmp_path)])
    assert run_command(dashboard.main) == 1
    message = f"error: no run in {tmp_path} yet; start one: python train.py, or python train.py --demo\n"
    assert capsys.readouterr().err == message


def test_with_a_tracking_server_the_dashboard_adds_the_runs_and_prints_where_they_are(
    tmp_path, empty_store, monkeypatch, capsys
):
    shutil.copy(empty_store, tmp_path / "elsewhere.db")
    Run(tmp_path, trackers=[]).whole()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    dashboard.main(["--output", str(tmp_path)])
    assert [run.info.run_name for run in stored_runs(tmp_path)] == ["ghost_20261123000000"]
    assert capsys.readouterr().out == (
        f"MLFLOW_TRACKING_URI is set, so the runs are there: sqlite:///{tmp_path / 'elsewhere.db'}\n"
    )
    assert not (tmp_path / STORE).exists()
