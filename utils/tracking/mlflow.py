"""Logs runs to MLflow: to a database beside the run folders, or to the server that MLFLOW_TRACKING_URI names.

https://mlflow.org/docs/latest/ml/tracking
"""

import contextlib
import logging
import os
import re
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from utils.config import Config
from utils.errors import DamagedStore, RunError
from utils.files import remove_partial, replacing
from utils.logs import without_secrets
from utils.runs.folder import BEST, CONFIG, CURVES, METRICS, RECORD, SPEED, read_record
from utils.runs.lock import is_held
from utils.runs.metrics import Row, best_values, read_rows
from utils.tracking.parameters import run_facts

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

STORE = "mlflow.db"
ARTIFACTS = "mlflow_artifacts"
EXPERIMENT = "Car models"  # unless MLFLOW_EXPERIMENT_NAME names another one
RUN_ID = "run_id"
SEARCH_TAG = re.compile(r"search [\w.-]+ [0-9a-f]{8}")  # of search.py: these runs have a parent of this name
BEST_PREFIX = "best_"  # of the names of best values
BEST_STEP = 0  # MLflow draws a metric of one step as bars and one of several steps as a curve
STATUSES = {"running": "RUNNING", "completed": "FINISHED", "early-stopped": "FINISHED", "failed": "FAILED"}  # or KILLED
MAX_TAG_LENGTH = 5000  # characters; MLflow's limit
MAX_BATCH = 1000  # metrics in one call; MLflow's limit
MAX_RUNS = 50_000
BUSY_SECONDS = 20  # the longest to wait for another writer, as MLflow does itself
CREATE_SECONDS = 60  # the longest to wait for another process that is creating the store
DAMAGED = ("file is not a database", "database disk image is malformed")  # SQLite's messages
MLFLOW_ENV = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 GB of memory for a feature that no training uses
}
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # MLflow's: 120 s and 7

logger = logging.getLogger(__name__)


def tracking_server() -> str | None:
    """Returns MLFLOW_TRACKING_URI, the server that replaces the local store, if it is set."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def store_uri(output_path: Path) -> str:
    """Returns the address of the store in `output_path`.

    Raises:
        RunError: The installed SQLAlchemy has no address for such a path.
    """
    from sqlalchemy import URL, make_url

    path = str(output_path.resolve() / STORE)
    # With its driver: from "sqlite:///…" MLflow would also create a folder of the quoted name.
    uri = URL.create("sqlite+pysqlite", database=path).render_as_string()
    if make_url(uri).database != path:
        raise RunError(f"{path}: SQLAlchemy before 2.1 cannot open a path with '?'; set another output_path")
    return uri


def store_name(output_path: Path) -> str:
    """Returns how messages name the store: its file, or the server without user name and password."""
    uri = tracking_server()
    if uri is None:
        return str(output_path / STORE)
    return re.sub(r"//[^/]*@", "//", uri).rstrip("/")


def open_store(output_path: Path, *, to_write: bool = False) -> tuple["MlflowClient", str]:
    """Opens the store in `output_path`, or the tracking server, and creates what is missing.

    Returns:
        MLflow's client, and the id of the experiment that holds all runs.

    Raises:
        DamagedStore: The store is not a valid database.
        RunError: The store cannot be used for another reason.
        ModuleNotFoundError: MLflow is not installed.
    """
    os.environ.update(MLFLOW_ENV)
    for name, limit in HTTP_LIMITS.items():
        os.environ.setdefault(name, limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the libraries that MLflow imports
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it raises its errors as well
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    with _store_errors(output_path), contextlib.ExitStack() as stack:
        uri, artifacts = tracking_server(), None
        if uri is None:
            stack.enter_context(_creation_lock(output_path))
            _create_tables(output_path)
            if to_write:
                _check_writable(output_path / STORE)
            uri, artifacts = store_uri(output_path), (output_path.resolve() / ARTIFACTS).as_uri()
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                client.create_experiment(name, artifacts)
            except MlflowException:  # another training may have created it in the meantime
                if client.get_experiment_by_name(name) is None:
                    raise
            experiment = client.get_experiment_by_name(name)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        if to_write and artifacts and experiment.artifact_location != artifacts:
            _move_artifacts(output_path / STORE, experiment.artifact_location, artifacts)
    return client, experiment.experiment_id


def _move_artifacts(store: Path, old: str, new: str) -> None:
    """Replaces the address of the artifacts, which MLflow keeps as it was before their folder was moved."""
    with contextlib.closing(sqlite3.connect(store, timeout=BUSY_SECONDS)) as connection, connection:
        connection.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", (old, new))
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (new, old))


def _create_tables(output_path: Path) -> None:
    """Creates the store under a temporary name: MLflow cannot repair one whose creation was interrupted."""
    store = output_path / STORE
    if store.exists() and (not store.is_file() or store.stat().st_size):
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import make_url

    remove_partial(output_path)
    with replacing(store) as partial:
        _check_writable(partial)
        uri = make_url(store_uri(output_path)).set(database=str(partial.resolve()))
        SqlAlchemyStore(uri.render_as_string(), (output_path.resolve() / ARTIFACTS).as_uri()).engine.dispose()


@contextlib.contextmanager
def _creation_lock(output_path: Path) -> Iterator[None]:
    """Keeps trainings that start together from creating the tables at the same time, which MLflow cannot handle."""
    lock = FileLock(output_path / f"{STORE}.lock")
    with contextlib.suppress(OSError, NotImplementedError):  # nothing is created in a read-only folder
        lock.acquire(timeout=CREATE_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _check_writable(store: Path) -> None:
    """Raises SQLite's error if the store is locked, read-only or damaged: MLflow would retry for minutes."""
    with contextlib.closing(sqlite3.connect(store, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE write_test (x INTEGER)")
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def _store_errors(output_path: Path) -> Iterator[None]:
    """Turns the errors of MLflow, SQLAlchemy and SQLite into a RunError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (sqlite3.Error, SQLAlchemyError, MlflowException) as error:
        name, text = store_name(output_path), without_secrets(str(error))
        for damage in DAMAGED:
            if damage in text:  # each library wraps the errors of the one below
                raise DamagedStore(
                    f"{name}: {damage}; delete this file, and `python dashboard.py` creates it again from the run folders"
                ) from error
        raise RunError(f"{name}: {text.splitlines()[0] if text else type(error).__name__}") from error


class MLflowTracker:
    """Logs the run in `folder`.

    MLflow cannot change a logged parameter or point. Where a resumed run has others (it was made longer, or an epoch was
    trained again after a kill), a new MLflow run replaces the old one and gets its tags and everything that metrics.csv
    holds: its table and charts show the epochs that count.
    """

    def __init__(self, config: Config | None, folder: Path, run_id: str) -> None:
        self.folder = folder.resolve()
        self.run_id = run_id
        self.log_checkpoint = bool(config and config.mlflow_artifacts)
        self.client, self.experiment = open_store(self.folder.parent, to_write=True)
        self.logged: dict[int, dict[str, str]] = {}  # epoch → metric → value, as MLflow has them
        self.latest = 0  # timestamp of the latest point, ms

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        self.name, self.facts, self.files = name, facts, files
        self.parameters = {key: str(value) for key, value in parameters.items()}
        self.started = round(datetime.fromisoformat(facts["started"]).timestamp() * 1000)
        run = find_run(self.client, self.experiment, self.run_id)
        old = run.data.params if run else {}
        if run is None or any(old.get(key, value) != value for key, value in self.parameters.items()):
            self._create_run(run)
            return
        self.id = run.info.run_id
        for metric in (name for name in run.data.metrics if not name.startswith(BEST_PREFIX)):
            for point in self.client.get_metric_history(self.id, metric):
                self.logged.setdefault(point.step, {})[metric] = _stored(point.value)
                self.latest = max(self.latest, point.timestamp)
        self._log_start(old)

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        best = {name: value for name, value in metrics.items() if name.startswith(BEST_PREFIX)}
        row = {name: value for name, value in metrics.items() if name not in best}
        earlier = [row for row in read_rows(self.folder / METRICS) if row["epoch"] < epoch]
        self._log_rows([*earlier, {"epoch": epoch, **row}], best)

    def _log_rows(self, rows: list[Row], best: dict[str, float]) -> None:
        """Logs the epochs that MLflow does not have, and the best values."""
        epochs = {int(row["epoch"]): {name: row[name] for name in row if name != "epoch"} for row in rows}
        stored = {epoch: {name: _stored(value) for name, value in row.items()} for epoch, row in epochs.items()}
        if any(self.logged[epoch] != stored[epoch] for epoch in self.logged.keys() & stored.keys()):
            self._create_run(self.client.get_run(self.id))
        points = [
            (name, value, epoch)
            for epoch, row in epochs.items()
            if epoch not in self.logged
            for name, value in row.items()
        ]
        self._log_points([*points, *((name, value, BEST_STEP) for name, value in best.items())])
        self.logged |= stored

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        rows = read_rows(self.folder / METRICS)
        self._log_rows(rows, best_values(rows))
        for path in files:
            self.client.log_artifact(self.id, str(path))
        if self.log_checkpoint and (self.folder / BEST).is_file():
            self.client.log_artifact(self.id, str(self.folder / BEST), BEST.parent.name)
        self._set_tags(facts)
        # MLflow's duration is the time of training, without the pauses between the parts of a resumed run.
        ended = self.started + round(1000 * facts["duration"])
        self.client.set_terminated(self.id, STATUSES.get(facts["status"], "KILLED"), ended)

    def _create_run(self, old: "Run | None") -> None:
        """Creates the MLflow run, in place of `old`, which goes to MLflow's trash."""
        tags = (old.data.tags if old else self._parent()) | {RUN_ID: self.run_id, "mlflow.source.name": "train.py"}
        if old:
            self.client.delete_tag(old.info.run_id, RUN_ID)
            self.client.delete_run(old.info.run_id)
        run = self.client.create_run(self.experiment, self.started, tags, None if old else self.name)
        self.id, self.logged = run.info.run_id, {}
        self._log_start({})

    def _parent(self) -> dict[str, str]:
        """Returns the tag that puts a trial of a search below the run of its search, which is created where it is missing."""
        search = next((tag for tag in self.facts["tags"] if SEARCH_TAG.fullmatch(tag)), None)
        if search is None:
            return {}
        with _creation_lock(self.folder.parent):
            parent = find_run(self.client, self.experiment, search)
            if parent is None:
                tags = {RUN_ID: search, "mlflow.source.name": "search.py"}
                parent = self.client.create_run(self.experiment, self.started, tags, search.split()[1])
                self.client.set_terminated(parent.info.run_id)
        return {"mlflow.parentRunId": parent.info.run_id}

    def _log_start(self, old: dict[str, str]) -> None:
        from mlflow.entities import Param

        new = [Param(name, value) for name, value in self.parameters.items() if name not in old]
        self.client.log_batch(self.id, params=new)
        self._set_tags(self.facts)
        for path in self.files:
            self.client.log_artifact(self.id, str(path))
        self.client.update_run(self.id, "RUNNING")

    def _set_tags(self, facts: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        texts = {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in facts.items()}
        for name, own in (("description", "mlflow.note.content"), ("commit", "mlflow.source.git.commit")):
            if name in texts:
                texts[own] = texts[name]
        self.client.log_batch(self.id, tags=[RunTag(name, text[:MAX_TAG_LENGTH]) for name, text in texts.items()])

    def _log_points(self, points: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        # MLflow shows the latest of several values of a step, also when the clock has been set back.
        self.latest = max(round(time.time() * 1000), self.latest + 1)
        metrics = [Metric(name, value, self.latest, step) for name, value, step in points]
        for first in range(0, len(metrics), MAX_BATCH):
            self.client.log_batch(self.id, metrics=metrics[first : first + MAX_BATCH])


def _stored(value: float) -> str:
    """Returns the value that MLflow stores, as text so that NaN equals NaN."""
    return repr(min(max(float(value), -sys.float_info.max), sys.float_info.max))


def find_run(client: "MlflowClient", experiment: str, run_id: str) -> "Run | None":
    """Returns the MLflow run of the run `run_id`, unless there is none or someone has deleted it."""
    return next(iter(client.search_runs([experiment], f"tags.{RUN_ID} = '{run_id}'", max_results=1)), None)


def log_artifact(folder: Path, path: Path) -> None:
    """Adds a file to the MLflow run of the run in `folder`, if MLflow has that run.

    Raises:
        RunError: The store cannot be written.
    """
    if not (run_id := read_record(folder).get(RUN_ID)):
        return  # a checkpoint outside a run
    client, experiment = open_store(folder.resolve().parent, to_write=True)
    with _store_errors(folder.parent):
        if run := find_run(client, experiment, run_id):
            client.log_artifact(run.info.run_id, str(path))


def import_runs(output_path: Path) -> None:
    """Adds to MLflow what only the run folders have: of runs that were killed, copied here, or trained without MLflow.

    Raises:
        RunError: The store cannot be written.
    """
    client, experiment = open_store(output_path, to_write=True)
    from mlflow.entities import ViewType

    with _store_errors(output_path):
        runs = client.search_runs([experiment], "", ViewType.ALL, MAX_RUNS)
        # How a run ended, and after how many seconds: one of them changes whenever it has trained.
        known = {
            tags.get(RUN_ID): (tags.get("status"), tags.get("duration")) for tags in (run.data.tags for run in runs)
        }
        seen: dict[str, Path] = {}
        for path in sorted(output_path.glob(f"*/{RECORD}")):
            folder, record = path.parent, read_record(path.parent)
            if (first := seen.setdefault(record.get(RUN_ID, str(folder)), folder)) != folder:
                logger.warning("%s is a copy of %s, so it is not shown", folder, first)
                continue
            if record.get("status") == "running":  # its process is gone, or the lock is held
                record["status"] = "killed"
                record["seconds"] = sum(row["seconds"] for row in read_rows(folder / SPEED))
            ended = record.get("status"), str(record.get("seconds"))
            if known.get(record.get(RUN_ID)) == ended or is_held(folder):
                continue
            try:
                _import_run(folder, record)
            except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
                logger.warning("%s is damaged or from another version, so it is not shown: %r", folder, error)


def _import_run(folder: Path, record: dict[str, Any]) -> None:
    facts = run_facts(record)
    tracker = MLflowTracker(None, folder, record[RUN_ID])
    tracker.start(record["name"], record["parameters"], facts, [folder / CONFIG])
    tracker.end(facts, [file for file in [folder / CURVES] if file.is_file()])
