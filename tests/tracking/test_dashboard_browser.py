"""The dashboard in a real browser, and MLflow's own server: slow, as MLflow takes 12 to 25 s to start.

python tests/tracking/test_dashboard_browser.py OUTPUT PICTURE.png takes a picture of the table of the runs in OUTPUT.
"""

import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from measurements.phone.browser import CHROMIUM, DRIVER, PAGE_SECONDS, browser, wait_for
from tests.support.tracked_runs import ROWS, Run, points, stored_runs, warnings_of
from utils.cli import set_options
from utils.machine import PROJECT
from utils.runs.folder import BEST
from utils.runs.metrics import COLUMNS

START_SECONDS = 180

pytestmark = pytest.mark.slow


@contextmanager
def dashboard(output: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Opens the dashboard of `output`; gives its address and its process."""
    code = "import dashboard; dashboard.UPDATE_SECONDS = 1; dashboard.main()"
    command = [sys.executable, "-c", code, "--output", str(output), "--no-browser", *options]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=printed, stderr=subprocess.STDOUT, text=True)
        try:
            limit = time.monotonic() + START_SECONDS
            while True:
                printed.seek(0)
                text = printed.read()
                if found := re.search(r"http://127\.0\.0\.1:\d+/\S*", text):
                    break
                assert process.poll() is None and time.monotonic() < limit, text
                time.sleep(0.1)
            yield found[0], process
        finally:
            process.terminate()
            process.wait(60)


def requested_hosts(driver: Any) -> set[str]:
    """Returns the hosts of all requests of the pages, websockets included."""
    hosts = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        url = {
            "Network.requestWillBeSent": lambda params: params["request"]["url"],
            "Network.webSocketCreated": lambda params: params["url"],
        }.get(message["method"], lambda params: "")(message["params"])
        if urlsplit(url).scheme in ("http", "https", "ws", "wss"):
            hosts.add(urlsplit(url).netloc)
    return hosts


def request(address: str, path: str, body: dict | None = None, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    headers = {"Content-Type": "application/json", **headers}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    response = connection.getresponse()
    response.content = response.read()
    connection.close()
    return response


CELLS = "[...document.querySelectorAll('[role=gridcell]')].flatMap(cell => cell.innerText.split('\\n'))"
HEADERS = "[...document.querySelectorAll('[role=columnheader]')].map(cell => cell.innerText.trim())"


@pytest.fixture(scope="module")
def runs(car_photos, tmp_path_factory) -> Path:
    """The folder of three runs of three epochs that differ in their learning rate; MLflow has the first one."""
    import train

    output = tmp_path_factory.mktemp("runs") / "What? #1"
    settings = [
        "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", "image_size=[32, 32]", "batch_size=14",
        "num_epochs=3", "num_workers=0", "accelerator=cpu", "augment_images=False", "cache_path=null",
        f"output_path='{output}'",
    ]  # fmt: skip
    for number, rate in enumerate((0.003, 0.03, 0.03)):
        own = [f"optimizer_params={{lr: {rate}}}", f"experiment_id=B-{number}", f"seed={number}"]
        own += ["trackers=[]"] if number else []
        train.main(["-d", str(car_photos), *set_options([*settings, *own])])
    return output


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its chromedriver are not installed")
def test_the_browser_shows_the_runs_with_their_parameters(runs):
    pytest.importorskip("selenium", reason="selenium is not installed")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in runs.glob("*/run.json")]
    names = {record["name"] for record in records}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # The table draws only the columns in sight, the page only the charts in sight.
        with dashboard(runs, "--port", str(port)) as (address, process), browser(width=7000, height=4000) as driver:
            assert urlsplit(address).port != port
            driver.get(address)
            shown = wait_for(driver, "the table of runs", CELLS, lambda texts: names | {"[32, 32]"} <= set(texts))
            best = {f"{record['best']['best_valid_acc']:.6g}"[:6] for record in records}
            assert all(any(text.startswith(value) for text in shown) for value in best)
            assert {"completed", "B-0", "B-1", "B-2", "ShuffleNetV2", "0.003", "0.03"} <= set(shown)
            columns = set(records[0]["parameters"]) | {"best_valid_acc", "best_valid_loss", "status", "experiment_id"}
            wait_for(driver, "the columns", HEADERS, lambda texts: columns <= set(texts))
            ids = driver.execute_script(
                "return [...new Set([...document.querySelectorAll('a[href*=\"/runs/\"]')]"
                ".map(link => link.href.split('/runs/')[1].split(/[/?]/)[0]))]"
            )
            assert len(ids) == len(names)
            driver.get(f"{driver.current_url}&compareRunsMode=CHART")
            lines = "document.querySelectorAll('.scatterlayer .trace path.js-line').length"
            wait_for(driver, "a curve of each run", lines, lambda count: count >= len(names))
            experiment = re.search(r"/experiments/(\d+)", address)[1]
            site = f"http://{urlsplit(address).netloc}"
            driver.get(f'{site}/#/compare-runs?runs={json.dumps(ids)}&experiments=["{experiment}"]')
            rows = "[...document.querySelectorAll('tr')].map(row => [row.className, row.innerText])"
            found = wait_for(
                driver, "the comparison", rows, lambda rows: any(text.startswith("learning_rate") for _, text in rows)
            )
            marked = {text.split()[0] for name, text in found if "diff-row" in name}
            assert marked & set(records[0]["parameters"]) == {"learning_rate", "all_optimizer_params"}
            assert requested_hosts(driver) == {urlsplit(address).netloc}
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    with socket.socket() as freed:
        freed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        freed.bind(("127.0.0.1", urlsplit(address).port))  # MLflow has ended as well


@pytest.mark.parametrize("colab", [False, True])
def test_only_colab_may_use_other_host_names_and_new_runs_are_added(runs, colab):
    proxy = "x-5000.prod.colab.dev"
    search = {"experiment_ids": ["1"]}
    with dashboard(runs, *["--colab"] * colab) as (address, _):
        assert request(address, "/").headers["X-Frame-Options"] == (None if colab else "SAMEORIGIN")
        assert request(address, "/", Host=proxy).status == (200 if colab else 403)
        path = "/ajax-api/2.0/mlflow/runs/search"
        assert request(address, path, search, Origin=f"https://{proxy}").status == (200 if colab else 403)
        assert request(address, path, search, Origin="https://elsewhere.example").status == 403

        new = runs / f"trained meanwhile {colab}"
        shutil.copytree(next(runs.glob("*/run.json")).parent, new)
        record = json.loads((new / "run.json").read_text(encoding="utf-8"))
        (new / "run.json").write_text(json.dumps(record | {"name": new.name, "run_id": new.name}), encoding="utf-8")
        limit = time.monotonic() + PAGE_SECONDS
        while new.name.encode() not in request(address, path, search).content:
            assert time.monotonic() < limit
            time.sleep(0.2)
    shutil.rmtree(new)


@pytest.fixture
def tracking_server(tmp_path) -> Iterator[str]:
    """A real MLflow server; gives its address."""
    from dashboard import MLFLOW_ENV, answers, free_port

    folder = tmp_path / "server"
    folder.mkdir()
    with free_port(5700) as port:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
            "--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | MLFLOW_ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + START_SECONDS
        while not answers(port):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.2)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def test_a_tracking_server_gets_everything(tracking_server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Mine")
    output = tmp_path / "output"
    first = Run(output, num_epochs=2, mlflow_artifacts=True)
    first.start()
    first.train(ROWS[0] | {"train_loss": math.nan, "valid_loss": math.inf})
    first.train(ROWS[1] | {"valid_loss": 9.0})  # killed before its checkpoint, and trained again
    first.end("interrupted")
    second = Run(output, num_epochs=3, mlflow_artifacts=True)
    second.rows = [first.rows[0]]
    second.start()
    (second.folder / BEST).parent.mkdir()
    (second.folder / BEST).write_bytes(b"weights")
    second.train(ROWS[1])
    second.train(ROWS[2])
    second.end()
    assert warnings_of(caplog) == [] and [path.name for path in output.iterdir()] == [second.folder.name]
    (stored,) = stored_runs(output)
    assert (stored.info.status, stored.data.params["max_num_epochs"]) == ("FINISHED", "3")
    for metric in COLUMNS[1:]:
        logged = points(output, stored, metric)
        assert logged[1:] == [(row["epoch"], row[metric]) for row in ROWS[1:]]  # to the last digit
    assert math.isnan(points(output, stored, "train_loss")[0][1])
    assert stored.data.metrics["best_valid_loss"] == 4.9
    [weights] = (tmp_path / "server/artifacts").rglob("best.ckpt")
    assert weights.read_bytes() == b"weights"

    Run(output, "trained without the server", trackers=[]).whole()
    command = [sys.executable, str(PROJECT / "dashboard.py"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_SECONDS)
    [address] = re.findall(rf"{tracking_server}/#/experiments/\d+/runs\?\S+", done.stdout)
    assert "viewStateShareKey" in address and len(stored_runs(output)) == 2


def take_picture(output: Path, picture: Path) -> None:
    """Writes a picture of the table of the runs in `output`."""
    with dashboard(output) as (address, _), browser(width=1900, height=620) as driver:
        driver.get(address)
        wait_for(driver, "the table of runs", "document.querySelectorAll('[role=gridcell]').length > 20")
        for name in ("shared_view.dismiss", "assistant.chat_panel.close", "toggle_sidebar_button"):  # as a person would
            button = f"document.querySelector('[data-component-id$=\"{name}\"]')"
            wait_for(driver, name, button)
            driver.execute_script(f"{button}.click()")
        time.sleep(3)  # until nothing moves
        driver.save_screenshot(str(picture))


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]), Path(sys.argv[2]))
