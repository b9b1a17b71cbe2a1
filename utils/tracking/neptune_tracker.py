"""Logs a run to Neptune as the configuration says."""

import logging
import os
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.runs.folder import METRICS
from utils.runs.metrics import best_values, read_rows
from utils.tracking.neptune_logger import NeptuneLogger

logger = logging.getLogger(__name__)


class NeptuneTracker:
    """Logs the run in `folder`; a run of the same `run_id` goes on."""

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.known_epochs: set[float] = set()  # of those logged from the folder
        names = config.neptune_username, config.neptune_project_name
        self.logger = NeptuneLogger(
            project="/".join(names) if all(names) else None,
            api_token=os.environ.get("NEPTUNE_API_TOKEN") or config.neptune_api_token,
            run_folder=folder,
            run_name=folder.name,
            run_id=run_id,
        )

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        self.logger.log_hyperparams(parameters)
        self._log(facts, files)
        if self.logger.begins:
            self._log_history()

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        if epoch not in self.known_epochs:
            self.logger.log_metrics(metrics, epoch)

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        self._log(facts, files)
        self.logger.close()

    def _log_history(self) -> None:
        """Logs what was trained before, which Neptune's new run lacks."""
        if self.logger.left_behind:
            logger.warning(
                "Neptune: what this run logged offline was delivered before, as a run that cannot go on. Now all of it is "
                "logged again, to another run named %s; the earlier one, which ends before this part, can be deleted",
                self.folder.name,
            )
        rows = read_rows(self.folder / METRICS)
        for index, row in enumerate(rows, start=1):
            values = {name: value for name, value in (row | best_values(rows[:index])).items() if name != "epoch"}
            self.log_epoch(values, int(row["epoch"]))
            self.known_epochs.add(row["epoch"])

    def _log(self, facts: dict[str, Any], files: list[Path]) -> None:
        self.logger.log_summary(facts)
        for path in files:
            self.logger.log_file(f"files/{path.stem}", path)
