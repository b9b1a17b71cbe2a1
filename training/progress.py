"""A progress bar over the batches of an epoch: live on a terminal, a line now and then in a log file."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from utils.progress import progress_bar


class TrainingProgress(Callback):
    """Shows the progress of the epoch, without waiting for the device."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._open(trainer, "training", int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._move()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._open(trainer, "validation", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._move()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, trainer: Trainer, phase: str, batches: int) -> None:
        self._close()
        if trainer.is_global_zero:
            epoch = f"epoch {trainer.current_epoch}/{trainer.max_epochs - 1} {phase}"
            self.bar = progress_bar(description=epoch, unit=" batches", total=batches)

    def _move(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
