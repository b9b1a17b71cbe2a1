"""Speaks to the trackers of a run; whatever happens to one of them, the training goes on."""

from pathlib import Path
from typing import Any

from utils.config import Config


class Trackers:
    """The trackers that a configuration names.

    Args:
        config: The whole configuration.
        folder: The run's folder.
        run_id: Names the run in every tracker, so that a resumed training continues it there.
    """

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.config = config

    def start(self, record: dict[str, Any], files: list[Path]) -> None:
        """Logs what is known before the first epoch: parameters, versions, configuration."""

    def log_epoch(self, values: dict[str, float]) -> None:
        """Logs the metrics of the epoch `values["epoch"]` and the best of each so far."""

    def end(self, record: dict[str, Any], files: list[Path]) -> None:
        """Logs how the run ended, and closes the trackers."""
