"""Logs runs to the MLflow store that `python dashboard.py` shows."""

import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.runs.folder import CONFIG, CURVES, METRICS, RECORD, SPEED, read_record
from utils.runs.lock import is_held
from utils.runs.metrics import Row, best_values, read_rows
from utils.tracking.mlflow_store import change, check_writable, open_store, store_errors
from utils.tracking.parameters import run_facts

RUN_ID = "run_id"
MOST_ROWS = 100  # in one call of MLflow, which takes 1000 metrics
STEP_OF_BEST = 0  # MLflow draws a metric without steps as bars, to compare the runs by; one with steps as curves
STATUSES = {"running": "RUNNING", "completed": "FINISHED", "early-stopped": "FINISHED", "failed": "FAILED"}  # or KILLED
LONGEST_TEXT = 5000  # of a tag; a parameter may have 6,000 characters
MOST_RUNS = 50_000
HALF_COPIED = ".artifact.uploading."  # begins the name of what MLflow copies until it is whole

logger = logging.getLogger(__name__)


class MLflowTracker:
    """Logs the run in `folder`; a run that is in the store already goes on there."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder.resolve()
        self.output_path = self.folder.parent
        self.run_id = run_id
        self.client, self.experiment = open_store(self.output_path, to_write=True)
        self.known_epochs: set[float] = set()

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        runs = self.client.search_runs([self.experiment], f"tags.{RUN_ID} = '{self.run_id}'", max_results=1)
        self.started = round(datetime.fromisoformat(facts["started"]).timestamp() * 1000)
        tags = {RUN_ID: self.run_id, "mlflow.source.name": "train.py"}
        run = runs[0] if runs else self.client.create_run(self.experiment, self.started, tags, name)
        self.id = run.info.run_id
        self._set_parameters(run.data.params, {name: str(value) for name, value in parameters.items()})
        self._set_tags(facts)
        from mlflow.utils.file_utils import local_file_uri_to_path

        for half in Path(local_file_uri_to_path(run.info.artifact_uri)).glob(f"{HALF_COPIED}*"):
            half.unlink(missing_ok=True)  # of a time when this run was killed: nobody else writes there
        self._log_files(files)
        self.client.update_run(self.id, "RUNNING")
        points = self.client.get_metric_history(self.id, "valid_loss")
        self.known_epochs = {point.step for point in points}
        self.latest = max((point.timestamp for point in points), default=0)
        self._log_missing(read_rows(self.folder / METRICS), run.data.metrics)

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        # An epoch that ended, but was killed before its checkpoint, is trained again, and would be drawn twice.
        if epoch not in self.known_epochs:
            check_writable(self.output_path)
            steps = {name: STEP_OF_BEST if name.startswith("best_") else epoch for name in metrics}
            self._log([(name, value, steps[name]) for name, value in metrics.items()])

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        check_writable(self.output_path)
        self._log_files(files)
        # The duration that MLflow shows is that of the training, not the time from its first start to its last end.
        ended = self.started + round(1000 * facts["duration"])
        self.client.set_terminated(self.id, STATUSES.get(facts["status"], "KILLED"), ended)
        self._set_tags(facts)

    def _set_parameters(self, old: dict[str, str], new: dict[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.id, params=[Param(name, value) for name, value in new.items() if name not in old])
        changed = [(value, self.id, name) for name, value in new.items() if old.get(name, value) != value]
        if changed:  # a run that goes on may be made longer, but MLflow itself never changes a parameter
            change(self.output_path, "UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?", changed)

    def _set_tags(self, facts: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        texts = {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in facts.items()}
        for name, own in (("description", "mlflow.note.content"), ("commit", "mlflow.source.git.commit")):
            if name in texts:
                texts[own] = texts[name]
        self.client.log_batch(self.id, tags=[RunTag(name, text[:LONGEST_TEXT]) for name, text in texts.items()])

    def _log_files(self, files: list[Path]) -> None:
        for path in files:
            self.client.log_artifact(self.id, str(path))

    def _log_missing(self, rows: list[Row], stored: dict[str, float]) -> None:
        """Logs the epochs and the best values that the run's folder has and the store has not."""
        missing = [row for row in rows if row["epoch"] not in self.known_epochs]
        self.known_epochs |= {row["epoch"] for row in missing}
        points = [[(name, row[name], row["epoch"]) for name in row if name != "epoch"] for row in missing]
        points += [
            [(name, value, STEP_OF_BEST)] for name, value in best_values(rows).items() if stored.get(name) != value
        ]
        for first in range(
            0, len(points), MOST_ROWS
        ):  # never a part of an epoch: it would be taken for the whole of it
            self._log([point for row in points[first : first + MOST_ROWS] for point in row])

    def _log(self, points: list[tuple[str, float, int]]) -> None:
        """Logs name, value and step of metrics, all of them or none."""
        from mlflow.entities import Metric

        # Of the values of a step MLflow shows that of the latest time: it must not go back where the clock does.
        self.latest = max(round(time.time() * 1000), self.latest + 1)
        self.client.log_batch(self.id, metrics=[Metric(name, value, self.latest, step) for name, value, step in points])


def import_runs(output_path: Path) -> None:
    """Brings the store up to date with the run folders: with runs that were killed, that were copied here, or that could
    not reach the store or had no MLflow when they were trained.

    Raises:
        RunError: The store cannot be written to.
    """
    client, experiment = open_store(output_path, to_write=True)
    from mlflow.entities import ViewType

    with store_errors(output_path):
        runs = client.search_runs([experiment], "", ViewType.ALL, MOST_RUNS)
        known = {run.data.tags.get(RUN_ID): run.data.tags.get("status") for run in runs}
        for path in sorted(output_path.glob(f"*/{RECORD}")):
            record = read_record(path.parent)
            if record.get("status") == "running":
                record["status"] = "killed"  # unless it is going on, see below
                record["seconds"] = sum(row["seconds"] for row in read_rows(path.parent / SPEED))
            if known.get(record.get(RUN_ID)) == record.get("status") or is_held(path.parent):
                continue
            try:
                _import_run(path.parent, record)
            except (KeyError, TypeError, ValueError, OSError) as error:
                logger.warning("%s is damaged or of another version and is not shown: %r", path.parent, error)


def _import_run(folder: Path, record: dict[str, Any]) -> None:
    facts = run_facts(record)
    tracker = MLflowTracker(folder, record[RUN_ID])
    tracker.start(record["name"], record["parameters"], facts, [folder / CONFIG])
    tracker.end(facts, [file for file in [folder / CURVES] if file.is_file()])
