"""Logs a run to Neptune as the configuration says."""

import os
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.neptune_logger import NeptuneLogger


class NeptuneTracker:
    """Logs the run in `folder`; a run of the same `run_id` goes on."""

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
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

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        self.logger.log_metrics(metrics, epoch)

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        self._log(facts, files)
        self.logger.close()

    def _log(self, facts: dict[str, Any], files: list[Path]) -> None:
        self.logger.log_summary(facts)
        for path in files:
            self.logger.log_file(f"files/{path.stem}", path)
