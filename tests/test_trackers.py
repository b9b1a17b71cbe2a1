"""What trackers are told of a run is what the run wrote down, and nothing that befalls them reaches the training."""

import importlib.util
import json
import logging
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from dashboard import Watch, show_on_colab
from tests.neptune_server import PROJECT as PROJECT_NAME
from tests.neptune_server import NeptuneServer
from utils import mlflow_store, trackers
from utils.config import load_config
from utils.errors import ConfigError, DamagedStore, RunError
from utils.history import COLUMNS, Row, best_values, write_rows
from utils.run_lock import hold, is_held
from utils.runs import CONFIG, CURVES, METRICS, SPEED, read_record, write_record
from utils.trackers import Trackers, check_trackers
from utils.tracking import study_parameters

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
# Said by SQLAlchemy to MLflow, whatever MLflow is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
PROJECT = Path(__file__).resolve().parents[1]
STUDY_PARAMETERS = {
    "runtime", "architecture", "num_params", "img_size", "grayscale", "normalize", "norm_params_rgb",
    "norm_params_gray", "crop_to_bboxes", "erase_background", "augment_images", "image_augmentations",
    "augment_tensors", "tensor_augmentations", "batch_size", "max_num_epochs", "dropout", "out_channels",
    "loss_function", "loss_params", "optimizer", "learning_rate", "weight_decay", "all_optimizer_params",
    "lr_scheduler", "lr_scheduler_params",
}  # fmt: skip
ROWS: list[Row] = [
    {"epoch": 0, "train_loss": 5.2, "train_acc": 0.01, "valid_loss": 5.1, "valid_acc": 0.02, "lr": 0.001}
    | {"train_top5_acc": 0.04, "valid_top5_acc": 0.05},
    {"epoch": 1, "train_loss": 1 / 3, "train_acc": 2 / 3, "valid_loss": 4.9, "valid_acc": 0.5, "lr": 0.001}
    | {"train_top5_acc": 0.9, "valid_top5_acc": 0.8},
    {"epoch": 2, "train_loss": 0.1, "train_acc": 0.6, "valid_loss": 5.0, "valid_acc": 0.7, "lr": 1e-5}
    | {"train_top5_acc": 0.8, "valid_top5_acc": 0.85},
]


class Run:
    """A run as a training leaves it, epoch by epoch, without the training."""

    def __init__(self, output: Path, name: str = "ghost_20261123000000", **settings: Any) -> None:
        self.folder = output / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = load_config(overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()])
        self.record = {
            "name": name, "run_id": f"id_of_{name}", "experiment_id": "C-50", "description": "Milestones: 67 ü",
            "tags": ["baseline", "gray"], "status": "running", "error": None, "seconds": 0.0, "runtime": "local",
            "started": datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC).isoformat(), "versions": {"torch": "2.11.0"},
            "commit": "0123abc", "best": {},
            "parameters": study_parameters(self.config, network="GhostNet", num_params=3_041_412, weight_decay=0.6),
        }  # fmt: skip
        (self.folder / CONFIG).write_text("architecture: ghost\n", encoding="utf-8")
        self.rows: list[Row] = []
        self.trackers = Trackers(self.config, self.folder, self.record["run_id"])

    def start(self) -> None:
        write_record(self.folder, self.record)
        self.trackers.start(self.record, [self.folder / CONFIG])

    def train(self, row: Row, *, told: bool = True) -> None:
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        write_rows(self.folder / METRICS, self.rows, COLUMNS)
        if told:
            self.trackers.log_epoch(row | best_values(self.rows))

    def end(self, status: str = "completed", error: str | None = None) -> None:
        self.record |= {"status": status, "error": error, "seconds": 3723.5, "best": best_values(self.rows)}
        (self.folder / CURVES).write_bytes(b"\x89PNG of the curves")
        write_record(self.folder, self.record)
        self.trackers.end(self.record, [self.folder / CURVES])
        self.trackers.release()

    def whole(self) -> "Run":
        self.start()
        for row in ROWS:
            self.train(row)
        self.end()
        return self


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store without an experiment: to make its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    mlflow_store.open_store(folder)
    with sqlite3.connect(folder / mlflow_store.STORE) as connection:
        connection.execute("DELETE FROM experiments WHERE name = ?", (mlflow_store.EXPERIMENT,))
    connection.close()
    return folder / mlflow_store.STORE


@pytest.fixture
def output(tmp_path, empty_store) -> Path:
    """The folder of runs, with an empty store."""
    folder = tmp_path / "My Drive ü #1 50%"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    return folder


def stored_runs(output: Path) -> list[Any]:
    client, experiment = mlflow_store.open_store(output)
    return client.search_runs([experiment], order_by=["attributes.start_time"])


def points(output: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    client, _ = mlflow_store.open_store(output)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


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
    again = Run(output, num_epochs=3)
    again.rows = first.rows
    again.start()
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


def import_of(output: Path) -> None:
    from utils.mlflow_tracker import import_runs

    import_runs(output)


@pytest.mark.parametrize("content", [b"this is not a database, whatever its name says" * 100, None])
def test_a_damaged_store_is_named(tmp_path, caplog, content):
    store = tmp_path / mlflow_store.STORE
    store.mkdir() if content is None else store.write_bytes(content)
    Run(tmp_path).whole()
    (message,) = warned(caplog)
    reason = "unable to open database file" if content is None else "file is not a database"
    assert f"{store}: {reason}" in message and METRICS in message


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


CONFINED = """
import logging, sys
from pathlib import Path
sys.path[:0] = ["{project}", "{project}/tests"]
from test_trackers import Run
from utils import mlflow_store
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
from test_trackers import ROWS, Run
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


def test_what_was_named_must_be_installed(monkeypatch):
    found = importlib.util.find_spec
    missing = ("tensorboard", "wandb", "neptune", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    config = load_config(overrides=["trackers=[mlflow, tensorboard, wandb]", "log_to_neptune=True"])
    with pytest.raises(ConfigError, match=r"pip install tensorboard wandb$"):
        check_trackers(config, "trackers")
    with pytest.raises(ConfigError, match=r"pip install neptune-client$"):
        check_trackers(config, "log_to_neptune")


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
from utils.run_lock import hold
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


def test_neptune_is_told_the_same(tmp_path, caplog, monkeypatch):
    pytest.importorskip("neptune", reason="neptune-client is not installed")
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


@pytest.mark.parametrize("first_part", ["delivered", "half delivered", "not delivered", "not logged"])
def test_a_run_that_neptune_knows_nothing_of_is_logged_whole(tmp_path, caplog, monkeypatch, first_part):
    pytest.importorskip("neptune", reason="neptune-client is not installed")
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
