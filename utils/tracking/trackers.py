"""Sends the values of a run to its trackers. No tracker can stop or slow down the training.

Each tracker works in its own thread, so that neither a slow disk nor a silent server delays an epoch.
"""

import logging
import math
import pkgutil
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from utils.config import Config
from utils.errors import UserError
from utils.logs import without_secrets
from utils.runs.folder import METRICS
from utils.runs.lock import hold
from utils.runs.metrics import best_values, read_rows
from utils.tracking import TRACKERS, Tracker, tracker_names
from utils.tracking.parameters import run_facts

logger = logging.getLogger(__name__)

OPEN_SECONDS = 30  # the longest that the first epoch waits for the trackers to open
CLOSE_SECONDS = 60  # the longest that the command waits at its end for values that are not yet logged
SIGNAL_SECONDS = 3  # the same after a signal: the whole command must end within ten seconds


class Trackers:
    """The trackers that a configuration names.

    Args:
        config: The whole configuration.
        folder: The run's folder.
        run_id: Identifies the run in every tracker, so that a resumed training continues it there.
    """

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.config = config
        self.folder = folder
        self.run_id = run_id
        self.threads: list[TrackerThread] = []
        self.lock: FileLock | None = None
        self.known_epochs: set[float] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Some of Lightning's launchers train in another process. Its copy logs nothing; `end` logs those epochs here.
        return self.__dict__ | {"threads": [], "lock": None}

    def hold(self) -> bool:
        """Locks the run for this process and returns whether locking is possible.

        Raises:
            RunError: Another process is training this run.
        """
        if self.lock is None:
            self.lock = hold(self.folder)
        return self.lock is not None

    def start(self, record: dict[str, Any], files: list[Path]) -> None:
        """Opens the trackers and logs what is known before the first epoch: parameters, versions, configuration."""
        self.hold()
        self.known_epochs = {row["epoch"] for row in read_rows(self.folder / METRICS)}
        self.threads = [TrackerThread(name, self._builder(name)) for name in tracker_names(self.config)]
        facts = run_facts(record)
        for thread in self.threads:
            thread.do(lambda tracker: tracker.start(record["name"], record["parameters"], facts, files))
        deadline = time.monotonic() + OPEN_SECONDS
        for thread in self.threads:  # no worker process is forked while a thread imports a library
            thread.opened.wait(max(0.0, deadline - time.monotonic()))

    def log_epoch(self, values: dict[str, float]) -> None:
        """Logs the metrics of the epoch `values["epoch"]` and the best value of each metric so far, after those of a trunk."""
        self._log_unknown(before=values["epoch"])
        self._log(values)

    def end(self, record: dict[str, Any], files: list[Path], *, timeout: float | None = None) -> None:
        """Logs how the run ended and closes the trackers.

        Args:
            record: The content of run.json.
            files: Logged where they exist.
            timeout: The longest to wait, in seconds; CLOSE_SECONDS by default.
        """
        self._log_unknown(before=math.inf)
        facts, files = run_facts(record), [file for file in files if file.is_file()]
        timeout = CLOSE_SECONDS if timeout is None else timeout
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            thread.do(lambda tracker: tracker.end(facts, files))
            thread.do(None)
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                thread.disable(f"not everything was logged within {timeout} s")

    def _log_unknown(self, *, before: float) -> None:
        """Logs the epochs of metrics.csv that are not logged yet, such as those of a branch's trunk."""
        rows = read_rows(self.folder / METRICS)
        for index, row in enumerate(rows, start=1):
            if row["epoch"] < before and row["epoch"] not in self.known_epochs:
                self._log(row | best_values(rows[:index]))

    def _log(self, values: dict[str, float]) -> None:
        metrics = {name: value for name, value in values.items() if name != "epoch"}
        self.known_epochs.add(values["epoch"])
        for thread in self.threads:
            thread.do(lambda tracker: tracker.log_epoch(metrics, int(values["epoch"])))

    def release(self) -> None:
        """Unlocks the run."""
        if self.lock is not None:
            self.lock.release()

    def _builder(self, name: str) -> Callable[[], Tracker]:
        # Imported in the tracker's thread: some libraries take seconds, and only the configured ones have to be installed.
        return lambda: pkgutil.resolve_name(TRACKERS[name][0])(self.config, self.folder, self.run_id)


class TrackerThread(threading.Thread):
    """Runs one tracker. Its first error disables it, with one warning."""

    def __init__(self, name: str, build: Callable[[], Tracker]) -> None:
        super().__init__(daemon=True, name=name)
        self.build = build
        self.tasks: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self.opened = threading.Event()
        self.warned = False
        self.start()

    def do(self, task: Callable[[Tracker], None] | None) -> None:
        """Queues a call on the tracker; None ends the thread."""
        self.tasks.put(task)

    def disable(self, reason: str) -> None:
        """Warns, once, that this tracker does not have the whole run."""
        if not self.warned:
            later = "; `python dashboard.py` adds what is missing" if self.name == "mlflow" else ""
            logger.warning(
                "%s: %s; the training is not affected and %s has every epoch%s", self.name, reason, METRICS, later
            )
        self.warned = True

    def run(self) -> None:
        try:
            tracker = self.build()
            while (task := self.tasks.get()) is not None:
                task(tracker)
                self.opened.set()
        # Tracking libraries raise whatever the libraries below them raise; no narrower class covers it.
        except Exception as error:
            self.disable(_describe(error))
        finally:
            self.opened.set()


def _describe(error: Exception) -> str:
    packages = {name: package for name, (_, package) in TRACKERS.items()}
    if isinstance(error, ModuleNotFoundError) and error.name in packages:
        return f"not installed, so nothing is logged to it; run: pip install {packages[error.name]}"
    if isinstance(error, UserError):
        return f"logging stopped: {error}"
    text = without_secrets(str(error)).strip().splitlines()
    return f"logging stopped: {type(error).__name__}{': ' + text[0][:300] if text else ''}"
