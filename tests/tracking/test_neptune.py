"""What arrives at a Neptune server, what lies on disk without one, and that no server can hold up or end a training.

Against the stand-in of neptune_server.py, on loopback; the printed commands are run as they are printed.
"""

import json
import logging
import math
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from tests.support.neptune_server import PROJECT, NeptuneServer
from utils.errors import ConfigError
from utils.tracking import neptune_client, neptune_logger
from utils.tracking.neptune_logger import NeptuneLogger

PARAMETERS = {
    "runtime": "local",
    "num_params": 4_153_092,
    "img_size": [227, 227],
    "grayscale": False,
    "normalize": True,
    "norm_params_gray": None,
    "dropout": 0.2,
    "learning_rate": 1e-3,
    "all_optimizer_params": {"lr": 0.001, "betas": [0.9, 0.999]},
    "weight_decay": math.nan,
    "seed": 2**40,
    "code": 2**70 + 1,
    "huge": 10**400,
}
STORED_PARAMETERS = {
    "runtime": "local",
    "num_params": 4_153_092,
    "img_size": "[227, 227]",
    "grayscale": False,
    "normalize": True,
    "norm_params_gray": "None",
    "dropout": 0.2,
    "learning_rate": 1e-3,
    "all_optimizer_params": "{'lr': 0.001, 'betas': [0.9, 0.999]}",
    "weight_decay": "nan",
    "seed": float(2**40),
    "code": str(2**70 + 1),
    "huge": str(10**400),
}
BOUND = 15  # seconds; unbounded, the client takes one to two minutes or never ends

# From Python 3.12 on, any fork beside threads warns, the server's own included.
forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the stand-in speaks plain http
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    monkeypatch.setitem(neptune_client.LIMITS, "NEPTUNE_RETRIES_TIMEOUT", "1")
    monkeypatch.setattr(neptune_client, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(neptune_client, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(neptune_client, "STOP_SECONDS", 2)
    monkeypatch.setattr(neptune_logger, "OPEN_SECONDS", 2)


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "run of today"
    folder.mkdir()
    return folder


def make_logger(run_folder: Path, token: str | None, **changes: Any) -> NeptuneLogger:
    settings = {"project": PROJECT, "api_token": token, "run_name": "ghost_today", "run_id": "ghost_today"}
    return NeptuneLogger(**{**settings, **changes}, run_folder=run_folder)


def log_epochs(tracker: NeptuneLogger, epochs: range) -> None:
    for epoch in epochs:
        tracker.log_metrics({"train_loss": 5 - epoch / 8, "lr": 0.001 * 0.5**epoch}, step=epoch)


def expected_points(num_epochs: int) -> dict[str, list[tuple[int, float]]]:
    return {
        "metrics/train_loss": [(epoch, 5 - epoch / 8) for epoch in range(num_epochs)],
        "metrics/lr": [(epoch, 0.001 * 0.5**epoch) for epoch in range(num_epochs)],
    }


def read_back(run_folder: Path) -> tuple[dict[str, Any], dict[str, list[tuple[int, Any]]]]:
    """Returns the assigned values and the points that the one folder of the client holds."""
    [log] = run_folder.glob(".neptune/*/run__*/data-1.log")
    values, points = {}, defaultdict(list)
    for line in log.read_text().splitlines():
        entry = json.loads(line)["obj"]
        path = "/".join(entry["path"])
        if entry["type"].startswith("Assign"):
            values[path] = entry["value"]
        elif entry["type"].startswith("Log"):
            points[path] += [(point["step"], point["value"]) for point in entry["values"]]
    return values, dict(points)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def deliver(message: str, server: NeptuneServer) -> None:
    """Runs the command that ends a message, as a person would."""
    command = message.rsplit(": ", 1)[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NEPTUNE_API_TOKEN": server.token}
    subprocess.run(command, shell=True, env=environment, timeout=60, check=True, capture_output=True)


def parameters(values: dict[str, Any]) -> dict[str, Any]:
    return {path.removeprefix("parameters/"): value for path, value in values.items() if path.startswith("parameters/")}


def test_everything_arrives_at_a_server(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_folder / "config.yml"
    config.write_text("seed: 1\n")
    with NeptuneServer() as server:
        tracker = make_logger(run_folder, server.token)
        tracker.log_hyperparams(PARAMETERS)
        log_epochs(tracker, range(20))
        tracker.log_metrics({"valid_loss": math.nan, "valid_acc": 0.5}, step=20)
        tracker.log_metrics({"valid_loss": -math.inf}, step=21)
        tracker.log_summary(
            {"status": "completed", "best_valid_acc": 0.5, "tags": ["C-50", "demo"], "description": "a wider head"}
        )
        tracker.log_file("files/config", config)
        config.write_text("overwritten before it is sent\n")
        tracker.finalize("success")
        tracker.finalize("success")
        tracker.log_summary({"best_epoch": 20, "error": None})
        tracker.close()
        tracker.close()
    run = server.runs["ghost_today"]
    values = server.values(run)
    assert parameters(values) == STORED_PARAMETERS
    assert {type(value) for value in parameters(values).values()} == {str, int, bool, float}
    assert server.points(run) == expected_points(20) | {
        "metrics/valid_loss_nonfinite": [(20, "epoch 20: nan"), (21, "epoch 21: -inf")],
        "metrics/valid_acc": [(20, 0.5)],
    }
    summary = {path: value for path, value in values.items() if path.startswith("summary/")}
    best = {"summary/best_valid_acc": 0.5, "summary/best_epoch": 20}
    assert summary == {"summary/status": "completed", "summary/error": "None", **best}
    assert (values["sys/name"], values["sys/description"]) == ("ghost_today", "a wider head")
    [tags] = [value["values"] for path, _, value in server.operations[run] if path == "sys/tags"]
    assert sorted(tags) == ["C-50", "demo"]
    assert server.files == {(run, "files/config"): b"seed: 1\n"}
    assert warnings_of(caplog) == []
    assert not list(run_folder.glob(".neptune/*/run__*"))
    assert not list(Path.cwd().iterdir())
    assert not {"NEPTUNE_DATA_DIRECTORY", "NEPTUNE_RETRIES_TIMEOUT"} & set(os.environ)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # Lightning's own
def test_lightning_ends_it_twice_and_it_goes_on(run_folder: Path) -> None:
    class Line(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            loss = self.layer(batch).square().mean()
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            self.log("valid_loss", self.layer(batch).square().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = DataLoader(torch.ones(4, 1), batch_size=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with NeptuneServer() as server:
        tracker = make_logger(run_folder, server.token)
        trainer = Trainer(max_epochs=3, accelerator="cpu", logger=tracker, log_every_n_steps=1, **quiet)
        model = Line()
        trainer.fit(model, loader, loader)
        trainer.validate(model, loader, verbose=False)
        tracker.log_summary({"status": "completed"})
        tracker.close()
    run = server.runs["ghost_today"]
    points = server.points(run)
    assert [step for step, _ in points["metrics/train_loss"]] == [1, 3, 5]
    assert len(points["metrics/valid_loss"]) >= 3
    assert server.values(run)["summary/status"] == "completed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"api_token": None}, "there is no API token, NEPTUNE_API_TOKEN is not set"),
        ({"api_token": ""}, "there is no API token"),
        ({"project": None}, "there is no project, neptune_username and neptune_project_name are not both set"),
        ({"api_token": "garbage top-secret"}, "the API token is not one of Neptune's"),
        ({"api_token": "WyJ0b3Atc2VjcmV0Il0="}, "the API token is not one of Neptune's"),
        ({"api_token": "eyJhcGlfYWRkcmVzcyI6IDV9"}, "the API token is not one of Neptune's"),
    ],
)
def test_offline_without_token_or_project(
    run_folder: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    caplog.set_level(logging.INFO)
    with NeptuneServer() as server:
        tracker = make_logger(run_folder, server.token, **changes)
        tracker.log_hyperparams(PARAMETERS)
        log_epochs(tracker, range(5))
        tracker.log_metrics({"train_loss": math.nan}, step=5)
        tracker.log_summary({"status": "interrupted"})
        values, points = read_back(run_folder)  # on disk without close
        tracker.close()
    assert parameters(values) == STORED_PARAMETERS
    assert values["summary/status"] == "interrupted"
    assert points == expected_points(5) | {"metrics/train_loss_nonfinite": [(5, "epoch 5: nan")]}
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"Neptune: offline, {reason}")
    assert str(run_folder / ".neptune") in warning
    project = "WORKSPACE/PROJECT" if "project" in changes else PROJECT
    assert warning.endswith(f" --path '{run_folder}' -p {project}")
    assert "top-secret" not in caplog.text
    assert caplog.messages[-1].endswith(warning.rsplit(": ", 1)[1])  # said once more where the run ends
    assert not server.tokens
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("behaviour", "where", "reason"),
    [
        ("refuse", "", "cannot be reached (ConnectionError)"),
        ("hang", "", "does not answer in time"),
        ("html", "", "is no Neptune server: its answer is not JSON"),
        ("missing", "", "is no Neptune server: it answers 404 Not Found"),
        ("hang", "oauth-token", "did not open the run (TimeoutError: no answer within 2 s)"),
        ("html", "experiments", "did not open the run (AttributeError"),
        ("missing", "projects", "did not open the run ("),
    ],
)
def test_offline_where_the_server_is_none(
    run_folder: Path, caplog: pytest.LogCaptureFixture, behaviour: str, where: str, reason: str
) -> None:
    with NeptuneServer() as server:
        server.behaviour, server.where = behaviour, where
        if behaviour == "refuse":
            server.close()
        start = time.monotonic()
        tracker = make_logger(run_folder, server.token)
        tracker.log_hyperparams(PARAMETERS)
        log_epochs(tracker, range(3))
        tracker.close()
        assert time.monotonic() - start < BOUND
    values, points = read_back(run_folder)
    assert parameters(values) == STORED_PARAMETERS
    assert points == expected_points(3)
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"Neptune: offline, {server.url} {reason}")
    assert server.token not in caplog.text


def test_a_server_without_encryption_has_to_be_allowed(
    run_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OAUTHLIB_INSECURE_TRANSPORT")
    with NeptuneServer() as server:
        tracker = make_logger(run_folder, server.token)
        log_epochs(tracker, range(2))
        tracker.close()
        [warning] = warnings_of(caplog)
        assert f"{server.url} did not open the run (it is not encrypted; " in warning
        assert "set OAUTHLIB_INSECURE_TRANSPORT=1)" in warning
        deliver(warning, server)
    [run] = server.runs.values()
    assert server.points(run) == expected_points(2)


def test_a_silent_host_without_http(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, NeptuneServer() as server:
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        start = time.monotonic()
        tracker = make_logger(run_folder, server.token)
        log_epochs(tracker, range(2))
        tracker.close()
        assert time.monotonic() - start < BOUND
    assert read_back(run_folder)[1] == expected_points(2)
    assert f"{server.url} does not answer in time" in caplog.text


@forking
@pytest.mark.parametrize("behaviour", ["die", "hang", "html"])
def test_a_server_lost_in_mid_run(run_folder: Path, caplog: pytest.LogCaptureFixture, behaviour: str) -> None:
    with NeptuneServer() as server:
        tracker = make_logger(run_folder, server.token)
        tracker.log_hyperparams(PARAMETERS)
        log_epochs(tracker, range(2))
        wait_until(lambda: server.points(server.runs["ghost_today"]) == expected_points(2))
        server.behaviour, server.where = ("serve" if behaviour == "die" else behaviour), "operations"
        if behaviour == "die":
            server.close()
        start = time.monotonic()
        log_epochs(tracker, range(2, 6))
        assert time.monotonic() - start < 1
        wake_up(tracker)
        if behaviour == "html":
            wait_until(lambda: "delivery broke off" in caplog.text)
        worker = multiprocessing.get_context("fork").Process(target=log_epochs, args=(tracker, range(9)))
        neptune_client.within(BOUND, worker.start)  # as a DataLoader does; the client would wait for the server
        worker.join()
        assert worker.exitcode == 0
        log_epochs(tracker, range(6, 8))
        tracker.close()
        assert time.monotonic() - start < BOUND
    *before, last = warnings_of(caplog)
    if behaviour == "html":
        [broken] = before
        assert broken.startswith("Neptune: delivery broke off (AttributeError")
    else:
        assert before == []
    assert last.startswith("Neptune: 12 entries were not delivered, they lie in ")
    assert last.endswith(f" --path '{run_folder}' -p {PROJECT}")
    assert server.token not in caplog.text
    for file in run_folder.rglob("*"):
        assert not file.is_file() or server.token.encode() not in file.read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def wake_up(tracker: NeptuneLogger) -> None:
    """Has the client send at once what it would send within five seconds."""
    tracker._run._op_processor._consumer.wake_up()


@pytest.mark.slow
def test_a_run_lost_and_resumed_without_its_server_is_still_one(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with NeptuneServer() as server:
        first = make_logger(run_folder, server.token)
        first.log_hyperparams(PARAMETERS)
        log_epochs(first, range(2))
        wake_up(first)
        wait_until(lambda: server.points(server.runs["ghost_today"]) == expected_points(2))
        server.close()
        log_epochs(first, range(2, 4))
        first.close()
        second = make_logger(run_folder, server.token)
        log_epochs(second, range(4, 6))
        curves = run_folder / "curves.png"
        curves.write_bytes(b"a picture")
        second.log_file("files/curves", curves)
        second.close()
    port = int(server.url.rsplit(":", 1)[1])
    with NeptuneServer(port) as revived:
        revived.runs = server.runs
        revived.operations = server.operations
        deliver(warnings_of(caplog)[-1], revived)
    assert list(server.runs) == ["ghost_today"]
    run = server.runs["ghost_today"]
    assert server.points(run) == expected_points(6)
    assert revived.refused == []
    assert revived.files == {(run, "files/curves"): b"a picture"}
    assert not list(run_folder.glob(".neptune/*/run__*"))


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from tests.tracking.test_neptune import PARAMETERS, log_epochs, make_logger
tracker = make_logger(Path({run_folder!r}), None)
assert "neptune" not in sys.modules
tracker.log_hyperparams(PARAMETERS)
log_epochs(tracker, range(30))
from neptune.common.backends.utils import retries_timeout
print(retries_timeout, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_killed_resumed_and_delivered(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tests = Path(__file__).parent
    code = CHILD.format(paths=[str(tests.parents[1])], run_folder=str(run_folder))
    environment = {**os.environ, "NEPTUNE_RETRIES_TIMEOUT": "7"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout.readline() == b"7\n"
        child.send_signal(signal.SIGKILL)
    values, points = read_back(run_folder)
    assert parameters(values) == STORED_PARAMETERS
    assert points == expected_points(30)

    [log] = run_folder.glob(".neptune/offline/run__*/data-1.log")
    log.write_text(log.read_text() + '{"obj": {"type": "AssignInt", "path": ["cut')  # a line that was cut off
    resumed = make_logger(run_folder, None)
    log_epochs(resumed, range(30, 32))
    resumed.close()
    assert read_back(run_folder)[1] == expected_points(32)
    with NeptuneServer() as server:
        [warning] = warnings_of(caplog)
        deliver(warning, server)
    [run] = server.runs.values()
    assert parameters(server.values(run)) == STORED_PARAMETERS
    assert server.points(run) == expected_points(32)
    assert server.refused == []


@pytest.mark.parametrize("run_id", ["ghost_today", "a_name_that_is_longer_than_the_client_takes_it"])
def test_a_resumed_run_is_the_same_run(run_folder: Path, caplog: pytest.LogCaptureFixture, run_id: str) -> None:
    with NeptuneServer() as server:
        offline = make_logger(run_folder, None, run_id=run_id)
        offline.log_hyperparams(PARAMETERS)
        log_epochs(offline, range(2))
        (run_folder / "config.yml").write_text("seed: 1")
        offline.log_file("files/config", run_folder / "config.yml")
        offline.close()
        for epochs in (range(2, 4), range(4, 6)):
            online = make_logger(run_folder, server.token, run_id=run_id)
            log_epochs(online, epochs)
            online.close()
    [(custom_id, run)] = server.runs.items()
    assert len(custom_id) <= 36
    assert server.points(run) == expected_points(6)
    assert server.refused == []
    assert parameters(server.values(run)) == STORED_PARAMETERS
    assert server.files == {(run, "files/config"): b"seed: 1"}
    assert len(warnings_of(caplog)) == 1  # of being offline
    assert not list(run_folder.glob(".neptune/*/run__*"))


def test_a_folder_that_cannot_be_written_ends_the_logging_only(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_folder / ".neptune").write_text("in the way")
    tracker = make_logger(run_folder, None)
    log_epochs(tracker, range(3))
    tracker.close()
    [warning] = warnings_of(caplog)
    assert warning.startswith("Neptune: logging stopped (NotADirectoryError")


def test_a_full_disk_ends_the_logging_only(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = make_logger(run_folder, None)
    log_epochs(tracker, range(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        for number in range(10):
            tracker.log_summary({f"text_{number}": "x" * 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.close()
    offline, stopped = warnings_of(caplog)
    assert offline.startswith("Neptune: offline")
    assert stopped.startswith("Neptune: logging stopped (OSError: [Errno 27]")


def test_copies_in_other_processes_are_silent_and_hold_no_token(run_folder: Path) -> None:
    with NeptuneServer() as server:
        tracker = make_logger(run_folder, server.token)
        unopened = pickle.loads(pickle.dumps(tracker))
        log_epochs(tracker, range(2))
        pickled = pickle.dumps(tracker)
        assert server.token.encode() not in pickled
        copy = pickle.loads(pickled)
        log_epochs(copy, range(2, 5))
        copy.close()
        tracker.close()
    assert server.points(server.runs["ghost_today"]) == expected_points(2)
    log_epochs(unopened, range(3))  # a process that Lightning spawns logs with the token of its environment
    unopened.close()
    assert read_back(run_folder)[1] == expected_points(3)


def test_only_rank_zero_logs(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracker = make_logger(run_folder, None)
    tracker.log_hyperparams(PARAMETERS)
    log_epochs(tracker, range(2))
    tracker.close()
    assert not list(run_folder.iterdir())


def test_a_missing_client_is_said_at_once(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neptune", None)
    with pytest.raises(ConfigError, match="pip install neptune-client"):
        make_logger(run_folder, None)
