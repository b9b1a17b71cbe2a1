"""Logs a run to TensorBoard, into the run folder: tensorboard --logdir output."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from utils.config import Config


class TensorBoardTracker:
    """Logs the run in `folder`."""

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.logger = TensorBoardLogger(folder.parent, name="", version=folder.name)
        self.parameters: dict[str, Any] = {}

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        self.parameters = {name: str(value) if isinstance(value, dict) else value for name, value in parameters.items()}
        self._log(facts, files)

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        if self.parameters:  # TensorBoard's table of parameters needs the names of the metrics
            best = {name: value for name, value in metrics.items() if name.startswith("best_")}
            metrics = {name: value for name, value in metrics.items() if name not in best}
            self.logger.log_hyperparams(self.parameters, best, epoch)
            self.parameters = {}
        self.logger.log_metrics(metrics, epoch)
        self.logger.experiment.flush()

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        self._log(facts, files)
        self.logger.finalize("finished")

    def _log(self, facts: dict[str, Any], files: list[Path]) -> None:
        import numpy as np
        from PIL import Image

        table = ["| | |", "|-|-|", *(f"| {name} | {value} |" for name, value in facts.items())]
        self.logger.experiment.add_text("run", "\n".join(table))
        for path in files:
            if path.suffix == ".png":
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                self.logger.experiment.add_image(path.name, pixels, dataformats="HWC")
            else:
                lines = path.read_text(encoding="utf-8").splitlines()
                self.logger.experiment.add_text(path.name, "\n".join(f"    {line}" for line in lines))
        self.logger.experiment.flush()
