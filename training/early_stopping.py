"""Early stopping for runs that are resumed: it keeps a new patience, and stays stopped unless the run is extended."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer, callbacks


# The name of Lightning's class: checkpoints keep its state under that name.
class EarlyStopping(callbacks.EarlyStopping):
    """Stops after `patience` epochs without a lower validation loss.

    Args:
        patience: Epochs.
        extend_finished_run: Whether to continue a run that had stopped early. Without it, a run that was killed after it
            stopped but before it recorded so ends without another epoch.
    """

    def __init__(self, patience: int, *, extend_finished_run: bool) -> None:
        super().__init__("valid_loss", mode="min", patience=patience, check_finite=False)
        self.extend_finished_run = extend_finished_run

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
        if self.extend_finished_run or self.wait_count < self.patience:
            self.stopped_epoch = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Of the first process: others may have read run.json after it was written anew.
        self.stopped_epoch = trainer.strategy.broadcast(self.stopped_epoch)
        if self.stopped_epoch:
            trainer.should_stop = True
