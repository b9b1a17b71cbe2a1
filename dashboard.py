"""Shows all runs in the browser: the table of their parameters and best metrics, their curves, and how they differ.

`python dashboard.py` opens MLflow's pages on this machine alone; no request leaves it.
"""

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError, DamagedStore, RunError
from utils.logs import start_logging
from utils.runs.folder import RECORD, read_record
from utils.runs.lock import is_held
from utils.tracking.mlflow_server import FIRST_PAGE, HOST, listen, serve
from utils.tracking.mlflow_store import STORE

PORT = 5000

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Shows all runs in the browser, until Ctrl-C.")
    parser.add_argument("--config", metavar="FILE", help="as of train.py; only its output_path matters here")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="folder of the runs, instead of output_path")
    parser.add_argument("--port", metavar="N", type=int, default=PORT, help=f"first port to try, {PORT} by default")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--colab", action="store_true", help="let a Colab notebook show it: show_on_colab()")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the dashboard until it is interrupted."""
    arguments = parse_arguments(argv)
    output_path = (arguments.output or load_config(arguments.config, overrides=arguments.set).output_path).resolve()
    start_logging("INFO")
    for package in ("mlflow", "flask"):  # mlflow-skinny, which has no pages, brings no flask
        if importlib.util.find_spec(package) is None:
            raise ConfigError("MLflow is not installed; run: pip install mlflow")
    if not (records := sorted(output_path.glob(f"*/{RECORD}"), reverse=True)):
        raise RunError(f"there is no run in {output_path} yet; start one: python train.py, or python train.py --demo")
    with suppress(KeyboardInterrupt):
        _show(output_path, [read_record(path.parent) for path in records], arguments)
    print("the dashboard has ended")


def show_on_colab(*arguments: str, height: int = 900) -> "subprocess.Popen[str]":
    """Shows the dashboard within a Colab notebook.

    Args:
        arguments: Of this command, such as "--output", "/content/drive/MyDrive/runs".
        height: Of the frame, pixels.

    Returns:
        The process that serves it; its `terminate()` ends it.

    Raises:
        RunError: It did not start.
    """
    command = [sys.executable, __file__, "--colab", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        _, found, address = line.strip().partition(f"http://{HOST}:")
        if found:
            from google.colab import output

            port, _, path = address.partition("/")
            output.serve_kernel_port_as_iframe(int(port), path=f"/{path}", height=str(height))
            # Whatever it says later is taken from the pipe, lest a full one holds it up.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process
    process.communicate()  # it is about to end
    raise RunError("".join(said).strip())


class Watch:
    """Keeps the store up to date with the run folders; it is opened only when one of them has changed.

    Args:
        output_path: Folder of the runs.
    """

    def __init__(self, output_path: Path) -> None:
        self.output_path = output_path
        self.seen: dict[Path, tuple[int, bool]] | None = None
        self.said: set[str] = set()

    def look(self) -> None:
        """Brings the store up to date.

        Raises:
            RunError: The store cannot be written to.
        """
        from utils.tracking.mlflow_tracker import import_runs

        records = self.output_path.glob(f"*/{RECORD}")
        found = {path: (path.stat().st_mtime_ns, is_held(path.parent)) for path in records}
        if found != self.seen:
            import_runs(self.output_path)
            self.seen = found

    def look_again(self) -> None:
        """Brings it up to date while the pages are shown, where no error may end that."""
        try:
            self.look()
        except (RunError, OSError) as error:
            self.warn(error)

    def warn(self, error: Exception) -> None:
        """Says, once, what keeps the store from being brought up to date."""
        if str(error) not in self.said:
            self.said.add(str(error))
            shown = (
                "" if isinstance(error, DamagedStore) else "; the runs are shown as they were when it was last written"
            )
            logger.warning("%s%s", error, shown)


def _show(output_path: Path, records: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    logger.info("opening the runs of %s, which takes some seconds", output_path)
    watch = Watch(output_path)
    try:
        watch.look()
    except RunError as error:
        if isinstance(error, DamagedStore) or not (output_path / STORE).is_file():
            raise
        watch.warn(error)

    def ready() -> None:
        print(f"{address}\nCtrl-C ends the dashboard", flush=True)
        screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        if screen and not arguments.no_browser and not arguments.colab:
            webbrowser.open(address)

    with listen(arguments.port) as listener:
        port = listener.getsockname()[1]
        address = f"http://{HOST}:{port}{FIRST_PAGE}"
        if port != arguments.port:
            logger.info("port %d is taken by another program, this is %d", arguments.port, port)
        parameters = dict.fromkeys(name for record in records for name in record.get("parameters", {}))
        serve(
            output_path,
            listener,
            parameters=list(parameters),
            colab=arguments.colab,
            ready=ready,
            look_again=watch.look_again,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
