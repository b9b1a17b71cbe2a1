"""Speaks to the trackers of a run; whatever happens to one of them, the training goes on.

Each tracker works in a thread of its own: neither a slow disk nor a silent server holds up an epoch.
"""

import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock

from utils.config import Config
from utils.errors import ConfigError, UserError
from utils.runs.folder import METRICS
from utils.runs.lock import hold
from utils.runs.metrics import best_values, read_rows
from utils.tracking.parameters import run_facts

logger = logging.getLogger(__name__)

OPEN_SECONDS = 30  # within which the first epoch waits for the trackers
CLOSE_SECONDS = 60  # within which the command waits for what is not yet logged
HURRY_SECONDS = 3  # the same after a signal, where ten seconds must do for all
PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb", "neptune": "neptune-client"}


class Tracker(Protocol):
    """What each tracker can do. `facts` is what `run_facts` returns, `files` are logged by their content."""

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None: ...

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None: ...

    def end(self, facts: dict[str, Any], files: list[Path]) -> None: ...


class Trackers:
    """The trackers that a configuration names.

    Args:
        config: The whole configuration.
        folder: The run's folder.
        run_id: Names the run in every tracker, so that a resumed training continues it there.
    """

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.config = config
        self.folder = folder
        self.run_id = run_id
        self.trackers: list[_Guarded] = []
        self.lock: FileLock | None = None
        self.known_epochs: set[float] = set()

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process (some of Lightning's launchers train in one) is silent; `end` logs what was trained there.
        return self.__dict__ | {"trackers": [], "lock": None}

    def hold(self) -> bool:
        """Marks the run as this process's, as long as it lives; returns whether it could be.

        Raises:
            RunError: It is another's.
        """
        if self.lock is None:
            self.lock = hold(self.folder)
        return self.lock is not None

    def start(self, record: dict[str, Any], files: list[Path]) -> None:
        """Logs what is known before the first epoch: parameters, versions, configuration."""
        self.hold()
        self.known_epochs = {row["epoch"] for row in read_rows(self.folder / METRICS)}
        names = list(dict.fromkeys(self.config.trackers or [])) + ["neptune"] * self.config.log_to_neptune
        self.trackers = [_Guarded(name, lambda name=name: self._build(name)) for name in names]
        parameters, facts = record["parameters"], run_facts(record)
        for each in self.trackers:
            each.do(lambda tracker: tracker.start(record["name"], parameters, facts, files))
        limit = time.monotonic() + OPEN_SECONDS
        for each in self.trackers:  # so that no process is forked while a thread imports a library
            each.opened.wait(max(0.0, limit - time.monotonic()))

    def log_epoch(self, values: dict[str, float]) -> None:
        """Logs the metrics of the epoch `values["epoch"]` and the best of each so far."""
        metrics = {name: value for name, value in values.items() if name != "epoch"}
        self.known_epochs.add(values["epoch"])
        for each in self.trackers:
            each.do(lambda tracker: tracker.log_epoch(metrics, int(values["epoch"])))

    def end(self, record: dict[str, Any], files: list[Path], *, hurry: bool = False) -> None:
        """Logs how the run ended, and closes the trackers; with `hurry`, as long as one waits who has sent a signal."""
        rows = read_rows(self.folder / METRICS)
        for index, row in enumerate(rows, start=1):
            if row["epoch"] not in self.known_epochs:
                self.log_epoch(row | best_values(rows[:index]))
        facts, files = run_facts(record), [file for file in files if file.is_file()]
        for each in self.trackers:
            each.do(lambda tracker: tracker.end(facts, files))
            each.tasks.put(None)
        seconds = min(HURRY_SECONDS, CLOSE_SECONDS) if hurry else CLOSE_SECONDS
        limit = time.monotonic() + seconds
        for each in self.trackers:
            each.thread.join(max(0.0, limit - time.monotonic()))
            if each.thread.is_alive():
                each.give_up(f"not all was logged within {seconds} s")

    def release(self) -> None:
        """Lets another process take the run up."""
        if self.lock is not None:
            self.lock.release()

    def _build(self, name: str) -> Tracker:
        # Imported here: each of them takes seconds, and only the configured ones need to be installed.
        if name == "mlflow":
            from utils.tracking.mlflow_tracker import MLflowTracker

            return MLflowTracker(self.folder, self.run_id)
        if name == "tensorboard":
            from utils.tracking.tensorboard_tracker import TensorBoardTracker

            return TensorBoardTracker(self.folder)
        if name == "wandb":
            from utils.tracking.wandb_tracker import WandbTracker

            return WandbTracker(self.folder, self.run_id)
        from utils.tracking.neptune_tracker import NeptuneTracker

        return NeptuneTracker(self.config, self.folder, self.run_id)


class _Guarded:
    """A tracker in its thread; the first error of any kind is its last, and is said once."""

    def __init__(self, name: str, build: Callable[[], Tracker]) -> None:
        self.name = name
        self.build = build
        self.tasks: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self.opened = threading.Event()
        self.said = False
        self.thread = threading.Thread(target=self._work, daemon=True, name=name)
        self.thread.start()

    def do(self, task: Callable[[Tracker], None]) -> None:
        self.tasks.put(task)

    def give_up(self, reason: str) -> None:
        if not self.said:
            later = ", from which `python dashboard.py` takes the run up later" if self.name == "mlflow" else ""
            logger.warning(
                "%s: %s; the training is not affected, and %s has every epoch%s", self.name, reason, METRICS, later
            )
        self.said = True

    def _work(self) -> None:
        try:
            tracker = self.build()
            while (task := self.tasks.get()) is not None:
                task(tracker)
                self.opened.set()
        # A tracker lets through whatever its many libraries raise; no narrower class holds all of it.
        except Exception as error:
            self.give_up(_described(error))
        finally:
            self.opened.set()


def check_trackers(config: Config, key: Literal["trackers", "log_to_neptune"]) -> None:
    """Looks for the packages that `key` of the configuration asks for.

    MLflow may be missing, since it is the default and not everybody who trains looks at a dashboard.

    Raises:
        ConfigError: A package is not installed.
    """
    names = ["neptune"] * config.log_to_neptune if key == "log_to_neptune" else config.trackers or []
    missing = [PACKAGES[name] for name in names if name != "mlflow" and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"not installed; run: pip install {' '.join(missing)}")


def _described(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
        return f"not installed, nothing is logged to it; run: pip install {PACKAGES[error.name]}"
    if isinstance(error, UserError):
        return f"logging stopped, {error}"
    text = str(error).strip().splitlines()
    return f"logging stopped, {type(error).__name__}{': ' + text[0][:300] if text else ''}"
