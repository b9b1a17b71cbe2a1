"""run.json of a run, its curves, and its end."""

import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Any, Literal, Self

from pytorch_lightning import Trainer

from training.checkpoints import file_version
from utils.config import Config
from utils.errors import DamagedCheckpoint, Interrupted, RunError
from utils.files import remove_partial, write_text
from utils.logs import without_secrets
from utils.machine import runtime
from utils.runs.curves import draw_curves
from utils.runs.folder import CONFIG, CURVES, LAST, METRICS, SPEED, has_ended, read_record, write_record
from utils.runs.metrics import Row, best_values, read_rows
from utils.runs.provenance import commit, versions
from utils.tracking.trackers import SIGNAL_SECONDS, Trackers

logger = logging.getLogger(__name__)

Status = Literal["running", "completed", "early-stopped", "interrupted", "failed"]


class RunRecord:
    """The record of a run. As a context manager it records how the training within ended, for whatever reason.

    Args:
        folder: The run's folder.
        config: Its resolved configuration.
        parameters: The study's 26 parameters.
        data: Of the data set: num_classes, the number of images of each split, and where the splits come from.
    """

    def __init__(self, folder: Path, config: Config, *, parameters: dict[str, Any], data: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        old = read_record(folder)
        self.was_finished = has_ended(folder)
        self.status_before = old.get("status")
        # A killed run could not record its duration, but each of its epochs did.
        trained = sum(row["seconds"] for row in read_rows(folder / SPEED)) if old else 0.0
        self.earlier_seconds = max(float(old.get("seconds", 0.0)), trained)
        self.began = time.monotonic()
        self.trainer: Trainer | None = None
        run_id = old.get("run_id") or uuid.uuid4().hex
        self.trackers = Trackers(config, folder, run_id)
        self.configured_before = (
            ""  # config.yml of the run that is resumed, until this process has written a checkpoint
        )
        self.values: dict[str, Any] = {
            "name": folder.name,
            "run_id": run_id,
            "experiment_id": config.experiment_id,
            "description": config.description,
            "tags": config.tags,
            "status": "running",
            "error": None,
            "started": old.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.earlier_seconds,
            "resumed": old.get("resumed", 0) + bool(old),
            "runtime": runtime(),
            "versions": versions(),
            "commit": commit(),
            **({"branch": old["branch"]} if "branch" in old else {}),
            **data,
            "best_metric": config.best_metric,
            "parameters": parameters,
            "best": best_values(self.rows),
        }

    @property
    def rows(self) -> list[Row]:
        return read_rows(self.folder / METRICS)

    def start(self, trainer: Trainer) -> None:
        """Writes the configuration and the record, and logs what starts.

        Raises:
            RunError: Another process is training this run.
        """
        if trainer.is_global_zero:
            # First: nothing may be written to a run of another process, not even how this one ended.
            alone = self.trackers.hold()
            for each in (self.folder, self.folder / LAST.parent):
                remove_partial(each, alone=alone)
        self.trainer = trainer
        if trainer.is_global_zero:
            if (self.folder / CONFIG).is_file():
                self.configured_before = (self.folder / CONFIG).read_text(encoding="utf-8")
            self.checkpoint_before = file_version(self.folder / LAST)
            self.values["precision"] = str(trainer.precision)
            write_text(self.folder / CONFIG, self.config.as_yaml())
            write_record(self.folder, self.values)
            self.trackers.start(self.values, [self.folder / CONFIG])
        model, count = self.values["parameters"]["architecture"], self.values["parameters"]["num_params"]
        device = trainer.strategy.root_device
        logger.info(
            "%s %s: %s with %s parameters, %s training and %s validation images, on %s%s, %s",
            "resuming" if self.values["resumed"] else "run", self.folder, model, f"{count:,}",
            f"{self.values['train_photos']:,}", f"{self.values['valid_photos']:,}", device,
            f" × {trainer.world_size}" if trainer.world_size > 1 else "", trainer.precision,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self.trainer is None:
            return False
        if not self.trainer.is_global_zero:
            # All processes raise a RunError without a cause together, and the first one reports it. Lightning would kill the
            # first, which may still be writing, as soon as another ends with an error.
            return isinstance(error, RunError) and error.__cause__ is None
        rows = self.rows
        self.values |= {
            "status": self._status(error),
            "error": None if error is None else without_secrets(f"{type(error).__name__}: {error}".strip()),
            "seconds": round(self.earlier_seconds + time.monotonic() - self.began, 1),
            "epochs": len(rows),
            "best": best_values(rows),
        }
        timeout = SIGNAL_SECONDS if self.values["status"] == "interrupted" else None
        if error is not None:
            # If nothing of this attempt is kept, a change that may have been the fault is not kept either.
            is_lost = self.configured_before and file_version(self.folder / LAST) == self.checkpoint_before
            if is_lost and self.was_finished and not isinstance(error, DamagedCheckpoint):
                self.values["status"] = self.status_before
            self._attempt(write_record, self.folder, self.values)
            if is_lost:
                self._attempt(write_text, self.folder / CONFIG, self.configured_before)
        if rows:
            self._attempt(draw_curves, {self.folder.name: rows}, self.folder / CURVES, title=self._title())
        self.trackers.end(self.values, [self.folder / CURVES] if rows else [], timeout=timeout)
        if error is None:
            # Last: a run that is killed before this line can be resumed.
            self._attempt(write_record, self.folder, self.values)
        self.trackers.release()
        if error is not None and (self.folder / LAST).is_file() and not isinstance(error, DamagedCheckpoint):
            change = f" --set {error.change}" if isinstance(error, RunError) and error.change else ""
            logger.warning("to resume: python train.py --resume %s%s", quote(str(self.folder)), change)
        return False

    def _attempt(self, write: Callable[..., None], *arguments: Any, **settings: Any) -> None:
        """Writes something at the end of a training; a full disk must not hide the training's own error or result."""
        try:
            write(*arguments, **settings)
        except RunError as problem:
            logger.error("%s", problem)

    def _status(self, error: BaseException | None) -> Status:
        if error is not None:
            return "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        stopper = self.trainer.early_stopping_callback
        return "early-stopped" if stopper is not None and stopper.stopped_epoch > 0 else "completed"

    def _title(self) -> str:
        name = self.values["experiment_id"]
        return (
            f"{name + ': ' if name else ''}{self.folder.name}, {self.values['parameters']['num_params']:,} parameters"
        )
