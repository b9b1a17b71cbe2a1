"""Compares a run with an undisturbed one: every number, the run in MLflow, and all files."""

import json
import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from training.checkpoints import ABOUT, read_checkpoint
from utils.runs.folder import BEST, LAST, METRICS, RECORD, read_record
from utils.runs.metrics import best_values, read_rows
from utils.tracking.mlflow import STORE

IGNORED_KEYS = {"output_path", "cache_path", "data_path", "raw_data_path", "num_workers", "checkpoint_interval"}
NUM_PARAMETERS = 26  # of the study


def differences(folder: Path, undisturbed: Path) -> Iterator[str]:
    """Yields the differences between two runs: metrics, checkpoints with the whole training state, and records."""
    if (folder / METRICS).read_bytes() != (undisturbed / METRICS).read_bytes():
        yield f"{METRICS} differs"
    for name in (LAST, BEST):
        states = [read_checkpoint(each / name) for each in (folder, undisturbed)]
        for state in states:
            state[ABOUT]["config"] = {k: v for k, v in state[ABOUT]["config"].items() if k not in IGNORED_KEYS}
        yield from (f"{name}: {what}" for what in _unequal(*states))
    records = [read_record(each) for each in (folder, undisturbed)]
    for key in ("status", "error", "epochs", "best", "parameters"):
        if records[0].get(key) != records[1].get(key):
            yield f"{RECORD}: {key} is {records[0].get(key)!r}, not {records[1].get(key)!r}"
    yield from wrong_in_mlflow(folder)


def unexpected_files(work: Path, undisturbed: Path) -> Iterator[str]:
    """Yields the files that only one of two folders with data, cache and output has.

    The folder of a run that was killed before its first checkpoint remains; it may contain the files of a run, all of them
    complete.
    """
    expected, found = _file_names(undisturbed), _file_names(work)
    yield from (f"missing: {name}" for name in sorted(expected - found))
    for name in sorted(found - expected):
        yield f"unexpected: {name}"
    for path in work.rglob(RECORD):
        json.loads(path.read_text(encoding="utf-8"))


def _file_names(work: Path) -> set[str]:
    """Returns the paths of all files, hidden ones included, and of empty folders, with one name for every run."""
    names = set()
    for path in work.rglob("*"):
        # These two folders are empty in a run that was killed in its first epoch.
        if path.is_file() or (path.name not in ("checkpoints", "artifacts") and not any(path.iterdir())):
            name = path.relative_to(work).as_posix()
            name = re.sub(r"output/ghost_\d{14}(_\d+)?/", "output/RUN/", name)
            name = re.sub(r"mlflow_artifacts/[0-9a-f]{32}/", "mlflow_artifacts/RUN/", name)
            names.add(re.sub(r"-[0-9a-f]{8}-[0-9a-f]{16}\.photos", "-KEY.photos", name))
    return names


def _unequal(value: Any, other: Any, where: str = "") -> Iterator[str]:
    if type(value) is not type(other):
        yield f"{where} is {type(value).__name__}, not {type(other).__name__}"
    elif isinstance(value, torch.Tensor):
        if value.dtype != other.dtype or value.shape != other.shape or not torch.equal(value, other):
            yield f"{where} differs"
    elif isinstance(value, dict):
        if value.keys() != other.keys():
            yield f"{where} has other keys: {sorted(map(str, value.keys() ^ other.keys()))}"
        for key in value.keys() & other.keys():
            yield from _unequal(value[key], other[key], f"{where}/{key}")
    elif isinstance(value, (list, tuple)):
        if len(value) != len(other):
            yield f"{where} has {len(value)} parts, not {len(other)}"
        for index, (a, b) in enumerate(zip(value, other, strict=False)):
            yield from _unequal(a, b, f"{where}/{index}")
    elif value != other and not (isinstance(value, float) and math.isnan(value) and math.isnan(other)):
        yield f"{where} is {value!r}, not {other!r}"


def wrong_in_mlflow(folder: Path) -> Iterator[str]:
    """Yields what MLflow has wrong about a run. It is read by SQL, independent of MLflow's own code."""
    record, rows = read_record(folder), read_rows(folder / METRICS)
    with closing(sqlite3.connect(folder.parent / STORE)) as store:
        found = store.execute(
            "SELECT run_uuid FROM tags WHERE key = 'run_id' AND value = ?", [record["run_id"]]
        ).fetchall()
        if len(found) != 1:
            yield f"MLflow has the run {len(found)} times"
            return
        run = found[0]
        (status,) = store.execute("SELECT status FROM runs WHERE run_uuid = ?", run).fetchone()
        if status != "FINISHED":
            yield f"MLflow: status {status}"
        if store.execute("SELECT count(*) FROM params WHERE run_uuid = ?", run).fetchone() != (NUM_PARAMETERS,):
            yield "MLflow: parameters are missing"
        for name in rows[0].keys() - {"epoch"}:
            query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
            if store.execute(query, (*run, name)).fetchall() != [(row["epoch"], row[name]) for row in rows]:
                yield f"MLflow: {name} differs from {METRICS}"
        latest = dict(store.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", run))
        for name, value in best_values(rows).items():
            if latest.get(name) != value:
                yield f"MLflow: {name} is {latest.get(name)}, not {value}"
        if store.execute("SELECT count(*) FROM experiments WHERE name != 'Default'").fetchone() != (1,):
            yield "MLflow: more than one experiment"
