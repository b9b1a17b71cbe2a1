"""The MLflow store of all runs: a database beside their folders, https://mlflow.org/docs/latest/ml/tracking."""

import contextlib
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from utils.errors import DamagedStore, RunError
from utils.files import remove_partial, replacing

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

STORE = "mlflow.db"
ARTIFACTS = "mlflow_artifacts"
EXPERIMENT = "Car models"
BUSY_SECONDS = 20  # as long as MLflow's own statements wait for another writer
MAKING_SECONDS = 60
DAMAGED = ("file is not a database", "database disk image is malformed")  # as SQLite says it
# Keeps MLflow to this machine and to one process.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 GB of memory for what no training uses
}


def store_uri(output_path: Path) -> str:
    return f"sqlite:///{output_path.resolve() / STORE}"


def open_store(output_path: Path, *, to_write: bool = False) -> tuple["MlflowClient", str]:
    """Returns MLflow's client of the store in `output_path` and the experiment that holds all runs, made if need be.

    Raises:
        DamagedStore: The store is no database any more.
        RunError: It cannot be used for another reason; the message says why.
        ModuleNotFoundError: MLflow is not installed.
    """
    os.environ.update(QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said by the libraries that MLflow imports to those who wrote it
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its errors are raised as well
    with store_errors(output_path), _made_by_one(output_path):
        _make_tables(output_path)
        if to_write:
            check_writable(output_path)
        client = MlflowClient(store_uri(output_path))
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                client.create_experiment(EXPERIMENT, (output_path.resolve() / ARTIFACTS).as_uri())
            except MlflowException:  # another training may have made it in the meantime
                if client.get_experiment_by_name(EXPERIMENT) is None:
                    raise
            experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
    return client, experiment.experiment_id


def _make_tables(output_path: Path) -> None:
    """Makes the store where there is none, beside its place: MLflow never repairs one whose making was broken off."""
    store = output_path / STORE
    if store.exists() and (not store.is_file() or store.stat().st_size):
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    remove_partial(output_path)
    with replacing(store) as partial:
        _try_writing(partial)
        SqlAlchemyStore(f"sqlite:///{partial.resolve()}", (output_path.resolve() / ARTIFACTS).as_uri()).engine.dispose()


@contextlib.contextmanager
def _made_by_one(output_path: Path) -> Iterator[None]:
    """Keeps trainings that start at once from making the tables of the store together, which MLflow does not."""
    lock = FileLock(output_path / f"{STORE}.lock")
    # Without a lock where there can be none, as in a folder that is only read: nothing is made there.
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire(timeout=MAKING_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def store_errors(output_path: Path) -> Iterator[None]:
    """Makes a RunError of what MLflow, SQLAlchemy and SQLite raise about the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (sqlite3.Error, SQLAlchemyError, MlflowException) as error:
        raise _store_error(output_path / STORE, error) from error


def _store_error(store: Path, error: Exception) -> RunError:
    text = str(error)
    for damage in DAMAGED:
        if damage in text:  # each library wraps the other's errors in its own
            return DamagedStore(
                f"{store}: {damage}; delete this file, and the next `python dashboard.py` makes it anew from the run folders"
            )
    return RunError(f"{store}: {text.splitlines()[0] if text else type(error).__name__}")


def check_writable(output_path: Path) -> None:
    """Sees whether the store can be written to, where MLflow would try again for minutes.

    Raises:
        RunError: It cannot: it is locked, read-only or damaged, or the disk is full.
    """
    _try_writing(output_path / STORE)


def _try_writing(store: Path) -> None:
    with _transaction(store) as connection:
        connection.execute("CREATE TABLE trial (of INTEGER)")
        connection.execute("ROLLBACK")


def change(output_path: Path, statement: str, values: list[tuple[Any, ...]]) -> None:
    """Executes an SQL statement of the store once for each of `values`, all of them or none.

    Raises:
        RunError: As `check_writable`.
    """
    with _transaction(output_path / STORE) as connection:
        connection.executemany(statement, values)
        connection.execute("COMMIT")


@contextlib.contextmanager
def _transaction(store: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(store, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
    except sqlite3.Error as error:
        raise _store_error(store, error) from error
