"""Three small runs, looked at in a real browser: the table, the curves, and what differs between the runs.

python tests/tracking/test_dashboard_browser.py OUTPUT PICTURE.png takes a picture of the runs in OUTPUT instead.
"""

import http.client
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1400,1000",
)  # fmt: skip
START_SECONDS = 120
PAGE_SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its chromedriver are not installed"),
]


@contextmanager
def dashboard(output: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Opens the dashboard of `output`; gives its address and its process."""
    code = (
        "from utils.tracking import mlflow_server; mlflow_server.LOOK_SECONDS = 1; import dashboard; dashboard.main()"
    )
    command = [sys.executable, "-c", code, "--output", str(output), "--no-browser", *options]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=said, stderr=subprocess.STDOUT, text=True)
        try:
            limit = time.monotonic() + START_SECONDS
            while True:
                said.seek(0)
                text = said.read()
                if found := re.search(r"http://127\.0\.0\.1:\d+/\S*", text):
                    break
                assert process.poll() is None and time.monotonic() < limit, text
                time.sleep(0.1)
            yield found[0], process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def browser() -> Iterator[Any]:
    """Opens headless Chromium with an empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def wait_for(driver: Any, what: str, script: str, wanted: Callable[[Any], bool] = bool) -> Any:
    """Returns what the JavaScript expression `script` gives as soon as it is what is `wanted`."""
    limit = time.monotonic() + PAGE_SECONDS
    while not wanted(found := driver.execute_script(f"return {script}")):
        assert time.monotonic() < limit, f"{what} did not appear within {PAGE_SECONDS} s, but {found!r}"
        time.sleep(0.2)
    return found


def requested_hosts(driver: Any) -> set[str]:
    """Returns the hosts of all that the pages asked for, websockets included."""
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


@pytest.fixture(scope="module")
def runs(car_photos, tmp_path_factory) -> Path:
    """The folder of three runs, each of three epochs, that differ in their learning rate."""
    import train

    output = tmp_path_factory.mktemp("runs")
    settings = [
        "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", "image_size=[32, 32]", "batch_size=14",
        "num_epochs=3", "num_workers=0", "accelerator=cpu", "augment_images=False", "cache_path=null",
        f"output_path={output}",
    ]  # fmt: skip
    for number, rate in enumerate((0.003, 0.03, 0.03)):
        own = [f"optimizer_params={{lr: {rate}}}", f"experiment_id=B-{number}", f"seed={number}"]
        # Only the first one speaks to the store; the dashboard has to find the others by itself.
        own += ["trackers=[]"] if number else []
        train.main(["-d", str(car_photos), *(word for setting in [*settings, *own] for word in ("--set", setting))])
    return output


def test_the_dashboard_shows_the_runs_in_a_browser(runs):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("selenium", reason="selenium is not installed")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in runs.glob("*/run.json")]
    names = {record["name"] for record in records}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with dashboard(runs, "--port", str(port)) as (address, process), browser() as driver:
            site = f"http://{urlsplit(address).netloc}"
            assert urlsplit(address).port != port

            driver.get(address)
            cells = "[...document.querySelectorAll('[role=gridcell]')].flatMap(cell => cell.innerText.split('\\n'))"
            shown = wait_for(driver, "the table of runs", cells, lambda texts: names <= set(texts))
            best = {f"{record['best']['best_valid_acc']:.6g}"[:6] for record in records}
            assert all(any(text.startswith(value) for text in shown) for value in best)
            assert {"completed", "B-0", "B-1", "B-2"} <= set(shown)
            assert "Assistant" not in driver.execute_script("return document.body.innerText")
            # The table draws only the columns that are in sight.
            driver.set_window_size(6000, 1000)
            headers = "[...document.querySelectorAll('[role=columnheader]')].map(cell => cell.innerText.trim())"
            columns = set(records[0]["parameters"]) | {"best_valid_acc", "best_valid_loss", "status", "experiment_id"}
            wait_for(driver, "the columns", headers, lambda texts: columns <= set(texts))
            shown = wait_for(driver, "the parameters", cells, lambda texts: "ShuffleNetV2" in texts)
            assert {"0.003", "0.03", "[32, 32]"} <= set(shown)
            driver.set_window_size(1400, 1000)

            page = driver.current_url
            experiment = re.search(r"/experiments/(\d+)", page)[1]
            driver.get(f"{page}&compareRunsMode=CHART")
            lines = "document.querySelectorAll('.scatterlayer .trace path.js-line').length"
            wait_for(driver, "a curve of each run", lines, lambda count: count >= len(names))
            text = wait_for(driver, "the charts", "document.body.innerText", lambda text: "Best of each run" in text)
            assert text.index("Curves") < text.index("Best of each run")

            ids = driver.execute_script(
                "return [...new Set([...document.querySelectorAll('a[href*=\"/runs/\"]')]"
                ".map(link => link.href.split('/runs/')[1].split(/[/?]/)[0]))]"
            )
            assert len(ids) == len(names)
            driver.get(f'{site}/#/compare-runs?runs={json.dumps(ids)}&experiments=["{experiment}"]')
            rows = "[...document.querySelectorAll('tr')].map(row => [row.className, row.innerText])"
            found = wait_for(
                driver, "the comparison", rows, lambda rows: any(text.startswith("learning_rate") for _, text in rows)
            )
            marked = {text.split()[0]: "diff-row" in name for name, text in found if text.split()[0] in columns}
            assert {name for name in set(records[0]["parameters"]) if marked[name]} == {
                "learning_rate",
                "all_optimizer_params",
            }

            driver.get(f"{site}/#/")
            text = wait_for(driver, "the home page", "document.body.innerText", lambda text: "Car models" in text)
            assert "UI telemetry" not in text and "Start Demo" not in text

            assert requested_hosts(driver) == {urlsplit(address).netloc}
            children = subprocess.run(
                ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=False
            )
            assert children.stdout == ""
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def answer(address: str, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """Asks the dashboard at `address` for `path`."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    body = '{"experiment_ids": []}' if method == "POST" else None
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize("colab", [False, True])
def test_other_names_reach_the_dashboard_on_colab_alone(runs, colab):
    proxy = "x-5000.prod.colab.dev"
    with dashboard(runs, *["--colab"] * colab) as (address, _):
        page = answer(address, "/")
        assert page.status == 200 and page.headers["Content-Security-Policy"].startswith("default-src 'self' ")
        assert page.headers["X-Frame-Options"] == (None if colab else "SAMEORIGIN")
        assert answer(address, "/ajax-api/3.0/mlflow/assistant/config").status == 404
        assert answer(address, "/", Host=proxy).status == (200 if colab else 403)
        search = "/ajax-api/2.0/mlflow/runs/search"
        assert answer(address, search, "POST", Origin=f"https://{proxy}").status == (200 if colab else 403)
        assert answer(address, search, "POST", Origin="https://elsewhere.example").status == 403


def test_a_run_trained_meanwhile_is_taken_up(runs):
    with dashboard(runs):
        new = runs / "of_meanwhile"
        shutil.copytree(next(runs.glob("*/run.json")).parent, new)
        record = json.loads((new / "run.json").read_text(encoding="utf-8"))
        (new / "run.json").write_text(json.dumps(record | {"name": new.name, "run_id": new.name}), encoding="utf-8")
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            with closing(sqlite3.connect(runs / "mlflow.db")) as store:
                found = list(store.execute("SELECT status FROM runs WHERE name = ?", [new.name]))
            if found == [("FINISHED",)]:
                break
            time.sleep(0.2)
    shutil.rmtree(new)
    assert found == [("FINISHED",)]


def test_a_folder_without_runs_is_named(tmp_path):
    command = [sys.executable, str(PROJECT / "dashboard.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: there is no run in {tmp_path} yet; start one: python train.py, or python train.py --demo\n"
    )


def take_picture(output: Path, picture: Path) -> None:
    """Writes a picture of the curves of the runs in `output`, 1400 pixels wide."""
    with dashboard(output) as (address, process), browser() as driver:
        driver.get(address)
        wait_for(driver, "the table of runs", "document.querySelectorAll('[role=gridcell]').length > 20")
        driver.get(f"{driver.current_url}&compareRunsMode=CHART")
        wait_for(driver, "the curves", "document.querySelectorAll('.scatterlayer .trace path.js-line').length > 3")
        time.sleep(3)  # until the charts stand still
        driver.execute_script("document.head.insertAdjacentHTML('beforeend', '<style>.modebar {display: none}')")
        driver.save_screenshot(str(picture))
        process.send_signal(signal.SIGINT)
        process.wait(20)


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]), Path(sys.argv[2]))
