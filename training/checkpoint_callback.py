"""Decides when checkpoints are written, and ends the training after a signal."""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from training.checkpoints import ABOUT, FORMAT, check_targets
from training.signals import SignalHandler
from utils.errors import ConfigError, Interrupted
from utils.runs.folder import BEST, KEPT, KEPT_BEST, LAST

MAX_WAIT = 3.0  # seconds that a signal waits for the end of a validation; closing takes its time too

logger = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes last.ckpt at the end of each epoch and every `interval` minutes, and best.ckpt.

    best.ckpt is the epoch of the best `best_metric`, the first of equal ones; in the study, of the lowest validation loss.
    After each of `kept` numbers of epochs both get a second name, from which another run can be branched.

    After a signal it writes last.ckpt and ends the training. Before an epoch is validated, it waits for the checkpoint of the
    last one: no epoch is recorded if the one before could not be written, and no thread runs when Lightning forks the
    workers of the validation.

    Args:
        folder: The run's folder.
        about: What every checkpoint holds beside Lightning's, as plain values: config, class_names and split_digest.
        best_metric: A loss, of which lower is better, or an accuracy, such as valid_acc.
        interval: Minutes between two checkpoints within an epoch; None for none.
        kept: Numbers of epochs.
        signals: Shows whether a signal was received.
        stop_after: Number of finished epochs after which the training is interrupted; None for never.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        *,
        best_metric: str = "valid_loss",
        interval: float | None,
        kept: Sequence[int] = (),
        signals: SignalHandler,
        stop_after: int | None = None,
    ) -> None:
        self.folder = folder
        self.about = about
        self.interval = interval
        self.kept = kept
        self.signals = signals
        self.stop_after = stop_after
        self.best_metric = best_metric
        self.lowest = float("inf")  # of the metric, accuracies with a minus
        self.written = time.monotonic()
        self.group: torch.distributed.ProcessGroup | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowest = state["lowest"]

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # Of the CPUs: through the group of the devices, the host would wait for its device after every batch.
        self.group = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[ABOUT] = {"format": FORMAT, "metrics": module.epoch_metrics, **self.about}

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        source = Path(trainer.ckpt_path).resolve().parents[1].name
        first = trainer.strategy.broadcast(source)
        if source != first:  # "last" may become another run while processes start
            raise ConfigError(f"one process found the run {first}, another {source}; give the name of the run")
        check_targets(checkpoint[ABOUT], self.about)
        for callback in trainer.callbacks:  # some of their state is used only when the run ends
            found = checkpoint["callbacks"].get(callback.state_key)
            for name, value in callback.state_dict().items() if found is not None else ():
                if isinstance(value, (int, float)) and not isinstance(found[name], (int, float)):
                    raise TypeError(f"its {name} is {found[name]!r:.60}, not a number")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()  # in place of Lightning's handlers, which communicate with other processes
        late = [epoch for epoch in self.kept if epoch <= trainer.current_epoch]
        if late := [epoch for epoch in late if not (self.folder / KEPT.format(epoch)).is_file()]:
            logger.warning("keep_checkpoints: the run was past %s already", ", ".join(map(str, late)))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.is_last_batch:  # validation follows, and then the epoch's own checkpoint
            trainer.strategy.checkpoint_io.wait()
            return
        if (index + 1) % trainer.accumulate_grad_batches:
            return  # between two steps the gradients would have to be kept too
        due = self.interval is not None and time.monotonic() - self.written >= 60 * self.interval
        if self._any_process(due or self.signals.received):
            self.save(trainer, LAST)
            self._end_if(trainer, self.signals.received)

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        # A long validation is abandoned; what was trained since the last checkpoint is trained again.
        self._end_if(trainer, self.signals.seconds_since > MAX_WAIT)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        epochs, links = trainer.current_epoch + 1, {}
        if epochs in self.kept:
            links = {KEPT.format(epochs): LAST, KEPT_BEST.format(epochs): BEST}
        value = module.epoch_metrics[self.best_metric]
        value = value if self.best_metric.endswith("loss") else -value
        if value < self.lowest:
            self.lowest = value
            # First: a run that is killed before last.ckpt is there trains this epoch again, and has its best one again.
            self.save(trainer, BEST, {LAST: BEST, **links})
        else:
            self.save(trainer, LAST, links)
        self._end_if(trainer, self.signals.received)
        done = trainer.current_epoch + 1
        if done == self.stop_after and done < trainer.max_epochs and not trainer.should_stop:
            raise Interrupted(f"stopped after {done} epochs, as --stop-after asks", signal_number=None)

    def save(self, trainer: Trainer, name: Path, links: Mapping[Path | str, Path] | None = None) -> None:
        """Starts to write a checkpoint, unless a NaN or infinite loss has spoiled the weights; `links` are second names."""
        trainer.lightning_module.check_finite()
        absolute = {self.folder / second: self.folder / file for second, file in (links or {}).items()}
        trainer.save_checkpoint(self.folder / name, weights_only=False, storage_options={"links": absolute})
        self.written = time.monotonic()

    def _any_process(self, wish: bool) -> bool:
        """Returns whether any process wishes it; then all must do it, as they wait for each other."""
        if self.group is None:
            return wish
        wishes = torch.tensor(int(wish))
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(wishes)

    def _end_if(self, trainer: Trainer, wish: bool) -> None:
        if not self._any_process(wish):
            return
        number = self.signals.signal_number or signal.SIGTERM
        raise Interrupted(
            f"{signal.Signals(number).name} ended the training in epoch {trainer.current_epoch}", signal_number=number
        )
