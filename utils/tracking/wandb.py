"""Logs a run to Weights & Biases; without an API key into the run folder, for `wandb sync` to deliver."""

import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from utils.config import Config

PROJECT = "car-models"  # unless WANDB_PROJECT names another one

logger = logging.getLogger(__name__)


class WandbTracker:
    """Logs the run in `folder`; the same `run_id` continues the same run."""

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        # With prompt=True it would ask for the key and wait for an answer.
        offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False)
        if offline:
            logger.warning("wandb: no API key; to deliver this run later: wandb login; wandb sync %s/wandb/*", folder)
        self.logger = WandbLogger(
            name=folder.name,
            id=run_id,
            save_dir=folder,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            offline=offline,
            mode="offline" if offline else None,  # offline=True alone takes effect too late, after wandb.login
            settings=wandb.Settings(console="off", silent=True),
        )

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        self.logger.log_hyperparams(parameters)
        self._log(facts, files)

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        self.logger.log_metrics(metrics, epoch)

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        self._log(facts, files)
        self.logger.experiment.finish(exit_code=int(facts["status"] not in ("completed", "early-stopped")))

    def _log(self, facts: dict[str, Any], files: list[Path]) -> None:
        self.logger.experiment.summary.update(facts)
        for path in files:
            self.logger.experiment.save(path, base_path=path.parent, policy="now")
