"""What TensorBoard and Neptune are told of a run is what the run wrote down; what was named must be installed."""

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.neptune_server import PROJECT as PROJECT_NAME
from tests.support.neptune_server import NeptuneServer
from tests.support.tracked_runs import ROWS, STUDY_PARAMETERS, Run, warned
from utils.config import load_config
from utils.errors import ConfigError
from utils.runs.folder import CONFIG, CURVES
from utils.runs.metrics import COLUMNS, best_values
from utils.tracking.trackers import check_trackers

# Looked for, not imported: that warns, and a warning of a class of its own ends the process that gathers the results.
NEEDS_NEPTUNE = pytest.mark.skipif(
    importlib.util.find_spec("neptune") is None, reason="neptune-client is not installed"
)


def test_what_was_named_must_be_installed(monkeypatch):
    found = importlib.util.find_spec
    missing = ("tensorboard", "wandb", "neptune", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    config = load_config(overrides=["trackers=[mlflow, tensorboard, wandb]", "log_to_neptune=True"])
    with pytest.raises(ConfigError, match=r"pip install tensorboard wandb$"):
        check_trackers(config, "trackers")
    with pytest.raises(ConfigError, match=r"pip install neptune-client$"):
        check_trackers(config, "log_to_neptune")


def test_tensorboard_holds_the_same(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = Run(tmp_path, trackers=["tensorboard"])
    run.start()
    for row in ROWS:
        run.train(row)
    from PIL import Image

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


@NEEDS_NEPTUNE
def test_neptune_is_told_the_same(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    Run(tmp_path, trackers=[], log_to_neptune=True).whole()
    (data,) = tmp_path.glob("*/.neptune/offline/*/data-1.log")
    logged: dict[str, list[Any]] = {}
    for line in data.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)["obj"]
        logged.setdefault(entry["path"][0] + "/" + "/".join(entry["path"][1:]), []).append(entry)
    assert {path.removeprefix("parameters/") for path in logged if path.startswith("parameters/")} == STUDY_PARAMETERS
    for metric in COLUMNS[1:]:
        series = [point for entry in logged[f"metrics/{metric}"] for point in entry["values"]]
        assert [(point["step"], point["value"]) for point in series] == [(row["epoch"], row[metric]) for row in ROWS]
    assert [entry["value"] for entry in logged["summary/status"]] == ["running", "completed"]
    assert logged["metrics/best_valid_acc"][-1]["values"][-1]["value"] == 0.7
    assert {"files/config", "files/curves", "sys/tags", "sys/description"} <= set(logged)


@NEEDS_NEPTUNE
@pytest.mark.parametrize(
    "first_part", ["delivered", pytest.param("half delivered", marks=pytest.mark.slow), "not delivered", "not logged"]
)
def test_a_run_that_neptune_knows_nothing_of_is_logged_whole(tmp_path, caplog, monkeypatch, first_part):
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the stand-in speaks plain http
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    project = dict(zip(("neptune_username", "neptune_project_name"), PROJECT_NAME.split("/"), strict=True))
    settings = {"trackers": [], "log_to_neptune": True, **project}
    first = Run(tmp_path, **settings | {"log_to_neptune": first_part != "not logged"})
    first.start()
    first.train(ROWS[0])
    first.train(ROWS[1])
    first.end("interrupted")
    with NeptuneServer() as server:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", server.token)
        if "not" not in first_part:
            caplog.clear()
            server.where, server.behaviour = "operations", "missing" if first_part == "half delivered" else "serve"
            command = [sys.executable, "-c", "from neptune.cli import sync; sync()", "--path", first.folder]
            subprocess.run([*command, "-p", PROJECT_NAME], check=server.behaviour == "serve", capture_output=True)
            server.behaviour = "serve"
        second = Run(tmp_path, **settings)
        second.rows = ROWS[:2]
        second.start()
        if first_part != "not delivered":
            second.train(ROWS[1])  # had ended, but was killed before its checkpoint
        second.train(ROWS[2])
        second.end()
        run = server.runs[second.record["run_id"]]
        for metric in COLUMNS[1:]:
            assert server.points(run)[f"metrics/{metric}"] == [(row["epoch"], row[metric]) for row in ROWS]
        assert server.values(run)["summary/status"] == "completed"
        assert {path for _, path in server.files} == {"files/config", "files/curves"}
    delivered = "not" not in first_part
    assert len(server.runs) == 1 + delivered
    told = [message for message in warned(caplog) if "can be deleted" in message]
    assert len(told) == delivered and all(second.folder.name in message for message in told)
    assert not server.refused
    assert not list(second.folder.glob(".neptune/*/run__*"))
