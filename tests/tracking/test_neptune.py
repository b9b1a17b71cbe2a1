"""What arrives at a Neptune server and what lies on disk without one; no server can delay or end a training.

Against the stand-in of neptune_server.py, on loopback. The printed commands are run as printed.
"""

import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.neptune_server import PROJECT as PROJECT_NAME
from tests.support.neptune_server import NeptuneServer
from tests.support.tracked_runs import ROWS, STUDY_PARAMETERS, Run, warnings_of
from utils.machine import PROJECT
from utils.runs.metrics import COLUMNS, best_values
from utils.tracking import neptune
from utils.tracking.neptune import _storable

pytestmark = pytest.mark.skipif(importlib.util.find_spec("neptune") is None, reason="neptune-client is not installed")

NAMES = dict(zip(("neptune_username", "neptune_project_name"), PROJECT_NAME.split("/"), strict=True))
MINUTE = 60  # a limit for what would otherwise never end


def slow(*values: Any) -> Any:
    """Each of these imports the client once or twice, 2.5 s each time."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the stand-in has no https
    monkeypatch.setenv("NEPTUNE_RETRIES_TIMEOUT", "1")
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    monkeypatch.setattr(neptune, "STOP_SECONDS", 3)


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "My Drive ü"


@pytest.fixture
def server(monkeypatch):
    with NeptuneServer() as server:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", server.token)
        yield server


def new_run(output: Path, rows: list | None = None, **settings: Any) -> Run:
    run = Run(output, **{"trackers": [], "log_to_neptune": True, **NAMES, **settings})
    run.rows = list(rows or [])
    return run


def read_back(output: Path) -> tuple[dict[str, Any], dict[str, list[tuple[int, Any]]]]:
    """Returns the assigned values and the points in the one folder of the client."""
    [log] = output.glob("*/.neptune/*/run__*/data-1.log")
    values, points = {}, defaultdict(list)
    for line in log.read_text().splitlines():
        entry = json.loads(line)["obj"]
        path = "/".join(entry["path"])
        if entry["type"].startswith("Assign"):
            values[path] = entry["value"]
        elif entry["type"].startswith("Log"):
            points[path] += [(point["step"], point["value"]) for point in entry["values"]]
    return values, dict(points)


def assert_whole(values: dict[str, Any], points: dict[str, list], status: str = "completed") -> None:
    assert {path.removeprefix("parameters/") for path in values if path.startswith("parameters/")} == STUDY_PARAMETERS
    for metric in COLUMNS[1:]:
        assert points[f"metrics/{metric}"] == [(row["epoch"], row[metric]) for row in ROWS]
    assert [value for _, value in points["metrics/best_valid_acc"]] == [
        best_values(ROWS[: count + 1])["best_valid_acc"] for count in range(3)
    ]
    assert values["summary/status"] == status


def deliver(message: str, server: NeptuneServer) -> None:
    """Runs the command at the end of a message, as a person would."""
    command = message.rsplit(": ", 1)[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NEPTUNE_API_TOKEN": server.token}
    subprocess.run(command, shell=True, env=environment, timeout=MINUTE, check=True, capture_output=True)


def left(output: Path) -> list[Path]:
    return list(output.glob("*/.neptune/*/run__*"))


def test_everything_arrives_at_a_server(output, server, caplog, tmp_path):
    run = new_run(output)
    run.record["parameters"] |= {"img_size": [227, 227], "dropout": 0.2, "weight_decay": math.nan, "grayscale": False}
    run.start()
    for row in ROWS:
        run.train(row)
    run.train(ROWS[2] | {"epoch": 3, "valid_loss": math.nan, "train_loss": -math.inf})
    run.end()
    assert warnings_of(caplog) == [] and left(output) == [] and list(Path.cwd().iterdir()) == []
    [(custom_id, run_id)] = server.runs.items()
    assert custom_id == run.record["run_id"]
    values, points = server.values(run_id), server.points(run_id)
    assert points.pop("metrics/valid_loss_nonfinite") == [(3, "epoch 3: nan")]
    assert points.pop("metrics/train_loss_nonfinite") == [(3, "epoch 3: -inf")]
    assert_whole(values, {path: series[:3] for path, series in points.items()})
    stored = {name: values[f"parameters/{name}"] for name in ("num_params", "img_size", "dropout", "grayscale")}
    assert stored == {"num_params": 3_041_412, "img_size": "[227, 227]", "dropout": 0.2, "grayscale": False}
    assert values["parameters/weight_decay"] == "nan" and values["parameters/loss_params"] == "None"
    assert (values["sys/name"], values["sys/description"]) == (run.folder.name, "Milestones: 67 ü")
    tags = [value["values"] for path, _, value in server.operations[run_id] if path == "sys/tags"]
    assert all(sorted(names) == ["baseline", "gray"] for names in tags) and tags
    assert server.files == {
        (run_id, "files/config"): b"architecture: ghost\n", (run_id, "files/curves"): b"\x89PNG of the curves"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (True, True), (3, 3), (2**40, float(2**40)), (2**70 + 1, str(2**70 + 1)), (10**400, str(10**400)), (0.2, 0.2),
        (math.nan, "nan"), (math.inf, "inf"), (None, "None"), ([1, 2], "[1, 2]"), ({"lr": 0.1}, "{'lr': 0.1}"),
    ],
)  # fmt: skip
def test_no_value_is_of_a_type_that_the_client_drops(value, stored):
    assert (type(_storable(value)), _storable(value)) == (type(stored), stored)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "NEPTUNE_API_TOKEN is not set"),
        ({"neptune_api_token": "canary-7"}, "the server did not open the run (the API token is not valid; "),
        (
            {"neptune_api_token": "canary-7", "neptune_username": None},
            "neptune_username and neptune_project_name are not both set",
        ),
    ],
)
def test_offline_without_a_token_or_project_and_delivered_later(output, caplog, settings, reason):
    run = new_run(output, **settings).whole()
    [message] = warnings_of(caplog)
    assert f"neptune: offline, because {reason}" in message and f"logged into {run.folder / '.neptune'}." in message
    assert "hosted service closed in March 2026; to deliver the run to a self-hosted server: " in message
    project = "WORKSPACE/PROJECT" if "neptune_username" in settings else PROJECT_NAME
    assert message.endswith(f" --path '{run.folder}' -p {project} --offline-only")
    assert "canary" not in message
    assert_whole(*read_back(output))
    with NeptuneServer() as server:
        deliver(message.replace("WORKSPACE/PROJECT", PROJECT_NAME), server)
        [run_id] = server.runs.values()
        assert_whole(server.values(run_id), server.points(run_id))
        assert len(server.files) == 2 and server.refused == []


@pytest.mark.parametrize(
    ("behavior", "where", "reason"),
    [
        slow("refuse", "", "NeptuneConnectionLostException"),
        slow("hang", "", "no answer"),
        slow("hang", "oauth-token", "no answer"),
        ("html", "", "JSONDecodeError"),
        slow("missing", "projects", ""),
    ],
)
def test_offline_if_the_server_does_not_open_the_run(output, server, caplog, monkeypatch, behavior, where, reason):
    monkeypatch.setattr(neptune, "OPEN_SECONDS", 4)
    server.behavior, server.where = behavior, where
    if behavior == "refuse":
        server.close()
    new_run(output).whole()
    assert_whole(*read_back(output))
    [message] = warnings_of(caplog)
    assert f"neptune: offline, because the server did not open the run ({reason}" in message
    assert message.endswith("--offline-only") and server.token not in message


@pytest.mark.slow
def test_an_unencrypted_server_has_to_be_allowed(output, server, caplog, monkeypatch):
    monkeypatch.delenv("OAUTHLIB_INSECURE_TRANSPORT")
    new_run(output).whole()
    [message] = warnings_of(caplog)
    assert "to allow that, set OAUTHLIB_INSECURE_TRANSPORT=1" in message
    assert_whole(*read_back(output))


@pytest.mark.slow
@pytest.mark.parametrize("behavior", ["die", "hang", "html"])
def test_a_server_lost_in_mid_run_ends_nothing_and_nothing_is_lost(output, server, caplog, behavior):
    run = new_run(output)
    run.start()
    run.train(ROWS[0])
    wait_until(lambda: any("metrics/lr" in server.points(run_id) for run_id in server.runs.values()))
    server.behavior, server.where = ("serve" if behavior == "die" else behavior), "operations"
    if behavior == "die":
        server.close()
    run.train(ROWS[1])
    run.train(ROWS[2])
    run.end()
    [message] = warnings_of(caplog)
    assert f"neptune: not everything was delivered. To deliver what is left in {run.folder / '.neptune'}: " in message
    for file in output.rglob("*"):
        assert not file.is_file() or server.token.encode() not in file.read_bytes()
    port = int(server.url.rsplit(":", 1)[1])
    server.close()
    with NeptuneServer(port) as revived:
        revived.runs, revived.operations = server.runs, server.operations
        deliver(message, revived)
        [run_id] = revived.runs.values()
        assert_whole(revived.values(run_id), revived.points(run_id))
    assert left(output) == []


def wait_until(condition) -> None:
    limit = time.monotonic() + MINUTE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


CHILD = """
import sys
sys.path.insert(0, {project!r})
from pathlib import Path
from tests.tracking.test_neptune import ROWS, neptune, new_run
neptune.STOP_SECONDS = 3
run = new_run(Path({output!r}))
run.start()
run.train(ROWS[0])
{then}
"""


@pytest.mark.slow
@pytest.mark.parametrize("behavior", ["serve", "hang"])
def test_a_process_that_is_killed_leaves_its_epochs_and_no_process(output, server, behavior):
    server.behavior, server.where = behavior, "operations"
    code = CHILD.format(project=str(PROJECT), output=str(output), then="print('trained', flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"trained\n"
        wait_until(lambda: any(b"valid_loss" in log.read_bytes() for log in output.glob("*/.neptune/*/*/data-1.log")))
        processes = children_of(child.pid)
        assert len(processes) == 1
        child.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in processes))
    [run_id] = server.runs.values()
    if behavior == "serve":
        assert server.points(run_id)["metrics/valid_loss"] == [(0, 5.1)] and left(output) == []
    else:
        assert read_back(output)[1]["metrics/valid_loss"] == [(0, 5.1)]


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["server", "host"])
def test_the_command_ends_though_the_server_is_silent(output, server, monkeypatch, silent):
    """The client's own exit handler would wait for the server, without end."""
    server.behavior = "hang"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if silent == "host":
            server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            monkeypatch.setenv("NEPTUNE_API_TOKEN", server.token)
        then = "run.trackers.end(run.record, [], timeout=0.5); print('ended')"
        code = CHILD.format(project=str(PROJECT), output=str(output), then=then)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=MINUTE, text=True, check=True)
    assert done.stdout == "ended\n"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_resumed_run_is_one_run_with_the_epochs_that_count(output, server, caplog, monkeypatch, mode):
    first = new_run(output)
    if mode == "offline":
        monkeypatch.delenv("NEPTUNE_API_TOKEN")
    first.start()
    first.train(ROWS[0])
    first.train(ROWS[1] | {"valid_loss": 9.0})  # killed before its checkpoint, and trained again
    first.end("interrupted")
    second = new_run(output, rows=first.rows)
    second.start()
    second.train(ROWS[1])
    second.train(ROWS[2])
    second.end()
    if mode == "offline":
        assert len(warnings_of(caplog)) == 2
        deliver(warnings_of(caplog)[-1], server)
    [run_id] = server.runs.values()
    assert_whole(server.values(run_id), server.points(run_id))
    assert server.refused == [] and left(output) == []


@pytest.mark.slow
def test_a_run_that_neptune_knows_nothing_of_is_logged_whole(output, server):
    first = new_run(output, log_to_neptune=False)
    first.start()
    first.train(ROWS[0])
    first.train(ROWS[1])
    first.end("interrupted")
    second = new_run(output, rows=first.rows)
    second.start()
    second.train(ROWS[2])
    second.end()
    [run_id] = server.runs.values()
    assert_whole(server.values(run_id), server.points(run_id))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_stops_only_the_logging(output, caplog):
    run = new_run(output)
    (run.folder / ".neptune").write_text("in the way")
    run.whole()
    messages = warnings_of(caplog)
    assert "neptune: logging stopped (" in messages[-1] and "Traceback" not in caplog.text


def test_a_client_that_was_killed_stops_only_the_logging(output, caplog):
    run = new_run(output)
    run.start()
    killed = 0
    limit = time.monotonic() + 30
    while not killed and time.monotonic() < limit:  # a child has its own command line only a moment after its start
        for pid in children_of(os.getpid()):
            if "neptune_process" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
                killed += 1
    assert killed == 1
    for row in ROWS:
        run.train(row)
    run.end()
    assert any("the training is not affected" in message for message in warnings_of(caplog))
