"""Trackers get what the run wrote, and a tracker's package has to be installed if it is configured."""

import importlib.util
import pickle
import sys
import time
from typing import Any

import pytest

from tests.support.tracked_runs import ROWS, STUDY_PARAMETERS, Run, points, stored_runs, warnings_of
from utils.config import load_config
from utils.errors import ConfigError
from utils.runs.folder import CONFIG, CURVES
from utils.runs.metrics import COLUMNS, best_values
from utils.tracking import check_trackers
from utils.tracking.mlflow import STORE


def test_the_configured_packages_have_to_be_installed(monkeypatch):
    found = importlib.util.find_spec
    missing = ("tensorboard", "wandb", "neptune", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    config = load_config(overrides=["trackers=[mlflow, tensorboard, wandb]", "log_to_neptune=True"])
    with pytest.raises(ConfigError, match=r"pip install tensorboard wandb$"):
        check_trackers(config, "trackers")
    with pytest.raises(ConfigError, match=r"pip install neptune-client$"):
        check_trackers(config, "log_to_neptune")


class WithoutMLflow:
    """Finds no module named mlflow."""

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
    (message,) = warnings_of(caplog)
    assert "mlflow: not installed" in message and "pip install mlflow" in message
    assert not (tmp_path / STORE).exists()


@pytest.mark.slow
def test_a_copy_in_another_process_logs_nothing_and_the_end_logs_its_epochs(output):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    run = Run(output)
    run.start()
    copy = pickle.loads(pickle.dumps(run.trackers))
    for row in ROWS:
        run.train(row, logged=False)
        copy.log_epoch(row)
    assert [each.data.metrics for each in stored_runs(output)] == [{}]
    run.end()
    (stored,) = stored_runs(output)
    assert points(output, stored, "valid_loss") == [(0, 5.1), (1, 4.9), (2, 5.0)]
    assert stored.data.metrics["best_valid_loss"] == 4.9


def test_the_epochs_of_a_trunk_are_logged_before_those_of_its_branch(output, monkeypatch):
    run, logged = Run(output, trackers=["mlflow"]), []
    run.start()
    for thread in run.trackers.threads:
        monkeypatch.setattr(thread, "do", lambda task: logged.append(task))
    for row in ROWS[:2]:
        run.train(row, logged=False)
    run.train(ROWS[2])

    class Recording:
        def log_epoch(self, metrics, epoch):
            epochs.append((epoch, metrics["best_valid_acc"]))

    epochs: list[tuple[int, float]] = []
    for task in logged:
        task(Recording())
    assert epochs == [(0, 0.02), (1, 0.5), (2, 0.7)]


def test_tensorboard_has_what_the_run_wrote(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = Run(tmp_path, trackers=["tensorboard"])
    run.start()
    for row in ROWS:
        run.train(row)
    Image.new("RGB", (30, 20), "red").save(run.folder / CURVES)
    run.trackers.end(run.record | {"status": "completed", "seconds": 7.5}, [run.folder / CURVES])
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for metric in COLUMNS[1:]:
        logged = [(event.step, event.value) for event in events.Scalars(metric)]
        assert logged == [(row["epoch"], pytest.approx(row[metric], rel=1e-7)) for row in ROWS]
    best = {name: events.Scalars(name)[-1].value for name in best_values(ROWS)}
    assert best == pytest.approx(best_values(ROWS), rel=1e-7)
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert set(HParamsPluginData.FromString(data).session_start_info.hparams) == STUDY_PARAMETERS
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("run/text_summary")]
    assert "| status | running |" in texts[0] and "| status | completed |" in texts[-1]
    assert "architecture: ghost" in events.Tensors(f"{CONFIG}/text_summary")[0].tensor_proto.string_val[0].decode()
    (image,) = events.Images(CURVES)
    assert (image.width, image.height) == (30, 20)


@pytest.mark.slow
def test_wandb_has_a_run_to_deliver_where_there_is_no_key(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = Run(tmp_path, trackers=["wandb"]).whole()
    (message,) = warnings_of(caplog)
    assert f"wandb: no API key; to deliver this run later: wandb login; wandb sync {run.folder}/wandb/*" in message
    (delivered,) = (run.folder / "wandb").glob("offline-run-*")
    (log,) = delivered.glob("run-*.wandb")
    limit = time.monotonic() + 60
    while len(content := log.read_bytes()) < 1000 and time.monotonic() < limit:
        time.sleep(0.1)  # its own process writes it
    assert delivered.name.endswith(run.record["run_id"]) and b"mine" in content
    assert all(metric.encode() in content for metric in (*COLUMNS[1:], *best_values(ROWS), "learning_rate"))
    assert (delivered / "files" / CONFIG).read_text() == "architecture: ghost\n" and (
        delivered / "files" / CURVES
    ).exists()
