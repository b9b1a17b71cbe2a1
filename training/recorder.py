"""Records the metrics of each epoch in metrics.csv, the trackers and the log."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from utils.files import write_csv
from utils.runs.folder import METRICS, SPEED
from utils.runs.metrics import COLUMNS, SPEED_COLUMNS, Row, best, best_values, read_rows
from utils.tracking.trackers import Trackers

logger = logging.getLogger(__name__)


# A Checkpoint: Lightning calls it after the module's on_train_epoch_end, when the epoch's metrics are complete.
class Recorder(Checkpoint):
    """Keeps the metrics of all epochs. They are part of the checkpoint, so a resumed run continues them exactly."""

    def __init__(self, folder: Path, trackers: Trackers) -> None:
        self.folder = folder
        self.trackers = trackers
        self.rows: list[Row] = []
        self.images = 0
        self.started = self.trained = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start()  # an epoch that is resumed in its middle skips on_train_epoch_start

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # once an epoch: queued work belongs to the training
        self.trained = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        row = {"epoch": trainer.current_epoch, **module.epoch_metrics}
        self.rows = [old for old in self.rows if old["epoch"] < trainer.current_epoch] + [row]
        if not trainer.is_global_zero:
            return
        more = [name for name in row if name not in COLUMNS]  # such as those of the raw weights
        write_csv(self.folder / METRICS, self.rows, [*COLUMNS, *more])
        speed = {
            "epoch": trainer.current_epoch,
            "seconds": round(time.monotonic() - self.started, 3),
            "images_per_second": round(self.images / max(self.trained - self.started, 1e-9), 1),
        }
        known = [old for old in read_rows(self.folder / SPEED) if old["epoch"] < trainer.current_epoch]
        write_csv(self.folder / SPEED, [*known, speed], SPEED_COLUMNS)
        self.trackers.log_epoch(row | best_values(self.rows))
        logger.info(describe_epoch(self.rows, speed, trainer.max_epochs))

    def _start(self) -> None:
        self.started = self.trained = time.monotonic()
        self.images = 0


def describe_epoch(rows: list[Row], speed: Row, num_epochs: int) -> str:
    """Returns the log line of the last epoch in `rows`."""
    row = rows[-1]
    parts = [
        f"epoch {row['epoch']:>{len(str(num_epochs - 1))}}/{num_epochs - 1}",
        *(
            f"{split} loss {row[f'{split}_loss']:.4f} acc {100 * row[f'{split}_acc']:5.2f} %"
            for split in ("train", "valid")
        ),
        *([f"raw {100 * row['valid_raw_acc']:.2f} %"] if "valid_raw_acc" in row else []),
        f"lr {row['lr']:.3g}",
        f"{speed['images_per_second']:,.0f} images/s",
        f"{speed['seconds']:.1f} s",
    ]
    lowest = best(rows, "valid_loss")
    if lowest and lowest[1] == row["epoch"] and math.isfinite(row["valid_loss"]):
        parts.append("lowest valid loss so far")
    return "  ".join(parts)
