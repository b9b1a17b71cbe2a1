"""Shows all runs in the browser: a table of their parameters and best metrics, their curves, and how they differ.

`python dashboard.py` adds the runs to MLflow and starts MLflow's own user interface, on this machine alone.
"""

import argparse
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError, DamagedStore, RunError
from utils.logs import start_logging
from utils.runs.folder import RECORD, read_record
from utils.runs.lock import is_held
from utils.tracking.mlflow import (
    MLFLOW_ENV,
    STORE,
    import_runs,
    open_store,
    store_name,
    store_uri,
    tracking_server,
)

HOST = "127.0.0.1"
PORT = 5000
MAX_PORT = 2**16 - 1
START_SECONDS = 180  # MLflow needs 12 to 25 s on two cores
STOP_SECONDS = 10
UPDATE_SECONDS = 30
# Colab shows a page of its machine under another host name, inside its own page.
COLAB = (
    "--allowed-hosts", f"localhost,localhost:*,{HOST},{HOST}:*,*.googleusercontent.com,*.colab.dev",
    "--cors-allowed-origins", "https://*.googleusercontent.com,https://*.colab.dev",
    "--x-frame-options", "NONE",
)  # fmt: skip
VIEW = "runs"  # name of MLflow's shared view that holds the columns of the table
BEST = ("best_valid_acc", "best_valid_acc_epoch", "best_valid_top5_acc", "best_valid_loss", "best_train_acc")

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Shows all runs in the browser, until Ctrl-C.")
    parser.add_argument("--config", metavar="FILE", help="as for train.py; only its output_path matters here")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as for train.py")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="folder of the runs, instead of output_path")
    parser.add_argument("--port", metavar="N", type=int, default=PORT, help=f"first port to try, {PORT} by default")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--colab", action="store_true", help="allow a Colab notebook to show it: show_on_colab()")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the dashboard until it is interrupted."""
    arguments = parse_arguments(argv)
    output_path = (arguments.output or load_config(arguments.config, overrides=arguments.set).output_path).resolve()
    start_logging("INFO")
    if not 1 <= arguments.port <= MAX_PORT:
        raise ConfigError(f"--port {arguments.port}: expected a port from 1 to {MAX_PORT}")
    for package in ("mlflow", "flask"):  # mlflow-skinny has no user interface and no flask
        if importlib.util.find_spec(package) is None:
            raise ConfigError("MLflow is not installed; run: pip install mlflow")
    if tracking_server():
        import_runs(output_path)
        server = store_name(output_path)
        address = f"{server}/{table(output_path)}" if server.startswith("http") else server
        print(f"MLFLOW_TRACKING_URI is set, so the runs are there: {address}")
        return
    if not any(output_path.glob(f"*/{RECORD}")):
        raise RunError(f"no run in {output_path} yet; start one: python train.py, or python train.py --demo")
    with suppress(KeyboardInterrupt):
        serve(output_path, arguments)
    print("the dashboard has ended")


def show_on_colab(*arguments: str, height: int = 900) -> "subprocess.Popen[str]":
    """Shows the dashboard in a Colab notebook.

    Args:
        arguments: Arguments of this command, such as "--output", "/content/drive/MyDrive/runs".
        height: Height of the frame, pixels.

    Returns:
        The process that serves it; its `terminate()` ends it.

    Raises:
        RunError: It did not start.
    """
    command = [sys.executable, __file__, "--colab", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        _, found, address = line.strip().partition(f"http://{HOST}:")
        if found:
            from google.colab import output

            port, _, path = address.partition("/")
            output.serve_kernel_port_as_iframe(int(port), path=f"/{path}", height=str(height))
            # A full pipe would block the process.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process
    process.communicate()  # it is about to end
    raise RunError("".join(lines).strip())


class StoreUpdater:
    """Keeps the store up to date with the run folders; it opens the store only if one of them has changed.

    Args:
        output_path: Folder of the runs.
    """

    def __init__(self, output_path: Path) -> None:
        self.output_path = output_path
        self.seen: dict[Path, tuple[int, bool]] | None = None
        self.warned: set[str] = set()

    def update(self) -> None:
        """Adds what is new.

        Raises:
            RunError: The store cannot be written.
        """
        records = self.output_path.glob(f"*/{RECORD}")
        found = {path: (path.stat().st_mtime_ns, is_held(path.parent)) for path in records}
        if found != self.seen:
            import_runs(self.output_path)
            self.seen = found

    def try_update(self) -> None:
        """Adds what is new; an error is a warning."""
        try:
            self.update()
        except (RunError, OSError) as error:
            self.warn(error)

    def warn(self, error: Exception) -> None:
        """Warns, once, that the store cannot be updated."""
        if str(error) not in self.warned:
            self.warned.add(str(error))
            logger.warning("%s%s", error, "" if isinstance(error, DamagedStore) else "; the table is not up to date")

    def run(self) -> None:
        """Updates every UPDATE_SECONDS, without end."""
        while True:
            time.sleep(UPDATE_SECONDS)
            self.try_update()


def table(output_path: Path) -> str:
    """Returns the address of the table of runs within MLflow's user interface.

    The columns are a view as MLflow's "Share view" saves it: a tag of the experiment.
    """
    client, experiment = open_store(output_path)
    from mlflow.exceptions import MlflowException

    address = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    values = [read_record(path.parent).get("parameters") for path in output_path.glob(f"*/{RECORD}")]
    values = [parameters for parameters in values if isinstance(parameters, dict)]
    names = dict.fromkeys(name for parameters in values for name in parameters)
    distinct = {name: len({str(parameters.get(name)) for parameters in values}) for name in names}
    parameters = sorted(names, key=lambda name: distinct[name] < 2)  # first those that differ
    columns = ["tags.`experiment_id`", "tags.`status`", *(f"metrics.`{name}`" for name in BEST)]
    columns += [f"params.`{name}`" for name in parameters]
    view = {
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", "duration", *columns],
        "isAccordionReordered": True,  # the metrics before the parameters
        "orderByKey": f"metrics.`{BEST[0]}`",
        "orderByAsc": False,
    }
    tag = f"mlflow.sharedViewState.{VIEW}"
    if client.get_experiment(experiment).tags.get(tag) != json.dumps(view):
        try:
            client.set_experiment_tag(experiment, tag, json.dumps(view))
        except MlflowException:  # a read-only store: the default columns
            return address
    return f"{address}&viewStateShareKey={VIEW}"


def serve(output_path: Path, arguments: argparse.Namespace) -> None:
    """Runs MLflow's user interface until it is interrupted."""
    logger.info("opening the runs of %s, which takes some seconds", output_path)
    updater = StoreUpdater(output_path)
    try:
        updater.update()
    except RunError as error:
        if isinstance(error, DamagedStore) or not (output_path / STORE).is_file():
            raise
        updater.warn(error)
    page = table(output_path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends MLflow too, as Ctrl-C does
    with free_port(arguments.port) as port, mlflow_ui(output_path, port, colab=arguments.colab) as process:
        if port != arguments.port:
            logger.info("port %d is in use, so this is %d", arguments.port, port)
        address = f"http://{HOST}:{port}/{page}"
        print(f"{address}\nCtrl-C ends the dashboard", flush=True)
        has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        if has_screen and not arguments.no_browser and not arguments.colab:
            webbrowser.open(address)
        threading.Thread(target=updater.run, daemon=True).start()
        raise RunError(f"MLflow has ended with exit code {process.wait()}")


@contextmanager
def free_port(first: int) -> Iterator[int]:
    """Reserves the first free port from `first` on among the dashboards of this machine.

    MLflow opens the port only seconds later, so that a second dashboard would find it free.

    Raises:
        RunError: A hundred ports are in use.
    """
    for port in range(first, min(first + 100, MAX_PORT + 1)):
        lock = FileLock(Path(tempfile.gettempdir(), f"car-dashboard-{port}.lock"))
        try:
            lock.acquire(blocking=False)
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((HOST, port))
        except OSError:  # in use, or reserved
            lock.release()
            continue
        try:
            yield port
        finally:
            lock.release()
        return
    raise RunError(f"no port from {first} on is free; set another one: --port N")


@contextmanager
def mlflow_ui(output_path: Path, port: int, *, colab: bool) -> Iterator[subprocess.Popen]:
    """Runs `mlflow ui`, which answers when the block begins.

    Raises:
        RunError: It does not start.
    """
    command = [
        sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri(output_path), "--host", HOST,
        "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning", *(COLAB if colab else ()),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, env=os.environ | MLFLOW_ENV, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RunError(f"MLflow did not start:\n{output.read().strip()[-2000:]}")
                time.sleep(0.2)
            yield process
        finally:
            process.terminate()  # MLflow passes it on to its server
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int) -> bool:
    """Returns whether MLflow answers on this port."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(run_command(main))
