"""Trackers: where a run is logged besides its folder."""

import importlib.util
from pathlib import Path
from typing import Any, Literal, Protocol

from utils.config import Config
from utils.errors import ConfigError

# name: (class, package to install)
TRACKERS = {
    "mlflow": ("utils.tracking.mlflow:MLflowTracker", "mlflow"),
    "tensorboard": ("utils.tracking.tensorboard:TensorBoardTracker", "tensorboard"),
    "wandb": ("utils.tracking.wandb:WandbTracker", "wandb"),
    "neptune": ("utils.tracking.neptune:NeptuneTracker", "neptune-client"),
}


class Tracker(Protocol):
    """A tracker of one run, constructed as `Tracker(config, folder, run_id)`; the same `run_id` continues the same run."""

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        """Logs what is known before the first epoch.

        Args:
            name: Name of the run.
            parameters: The 26 parameters of the study.
            facts: `parameters.run_facts`: status, tags, versions.
            files: Logged by their content.
        """

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        """Logs the metrics of an epoch, and the best value of each metric so far as `best_<metric>`."""

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        """Logs how the run ended and closes the tracker."""


def tracker_names(config: Config) -> list[str]:
    """Returns the trackers that the configuration names; Neptune has a key of its own, as in the study's configuration."""
    return [*dict.fromkeys(config.trackers or []), *["neptune"] * config.log_to_neptune]


def check_trackers(config: Config, key: Literal["trackers", "log_to_neptune"]) -> None:
    """Checks that the packages of the trackers that `key` names are installed.

    MLflow may be missing: it is the default, and the run folder holds everything that it would show.

    Raises:
        ConfigError: A package is not installed.
    """
    names = [name for name in tracker_names(config) if (name == "neptune") == (key == "log_to_neptune")]
    missing = [TRACKERS[name][1] for name in names if name != "mlflow" and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"not installed; run: pip install {' '.join(missing)}")
