"""The LightningModule: training and validation steps, metrics, optimizer and learning rate."""

import math
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn, optim

from models.compilation import CompileMode, FullBatches
from models.optimization import build_lr_scheduler, build_optimizer, step_lr_scheduler
from utils.errors import RunError
from utils.runs.folder import LAST
from utils.seeding import mix, seed_device

TOP_K = 5
FINITE = torch.iinfo(torch.int64).max  # in the place of a step, where every loss was finite


class Classifier(LightningModule):
    """Trains `model` to classify images.

    Each epoch it logs, as means over images (not over batches): train_loss, train_acc, valid_loss, valid_acc, both
    splits' top-5 accuracy, and lr, the rate that the epoch was trained with. Accuracies are in 0 … 1.

    Args:
        model: Turns images (N, C, H, W) into logits (N, classes).
        loss: Turns logits and labels (N,) into one number.
        optimizer, optimizer_params, lr_scheduler, lr_scheduler_params: As in `config.yml`.
        stop_on_nonfinite_loss: Whether a loss that is infinite or no number ends the training.
        seed: Start of the random numbers of dropout, which depend on it and on the step alone.
        channels_last: Whether images and weights lie in memory as NHWC.
        compile_mode: Of torch.compile, through which a fit runs its full batches; None for none.
        batch_size: How many images a full batch has.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        optimizer: str,
        optimizer_params: dict[str, Any] | None,
        lr_scheduler: str | None,
        lr_scheduler_params: dict[str, Any] | None,
        seed: int,
        stop_on_nonfinite_loss: bool = True,
        channels_last: bool = False,
        compile_mode: CompileMode | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # LBFGS looks at all gradients as one row of numbers, which only the plain layout is.
        self.memory_format = torch.channels_last if channels_last and optimizer != "LBFGS" else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        self.loss = loss
        self.optimizer = (optimizer, optimizer_params)
        self.lr_scheduler = (lr_scheduler, lr_scheduler_params)
        self.seed = seed
        self.stop_on_nonfinite_loss = stop_on_nonfinite_loss
        self.compile_mode = compile_mode
        self.batch_size = batch_size
        self.full_batches: FullBatches | None = None  # in a fit with a compile_mode
        self.nonfinite_step: Tensor | None = None  # the first step of this epoch with such a loss, or FINITE
        self.scheduler: optim.lr_scheduler.LRScheduler | None = None
        self.scheduler_state: dict[str, Any] | None = None  # of the checkpoint that training goes on from
        self.epoch_metrics: dict[str, float] = {}  # of the last epoch that ended
        self.train_sums: Tensor | None = None  # of loss, correct, correct among the top 5, and images
        self.valid_sums: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        network = self.model if self.full_batches is None else self.full_batches
        return network(images.to(memory_format=self.memory_format))

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.compile_mode is not None:
            self.full_batches = FullBatches(self.model, self.compile_mode, self.batch_size)

    def configure_optimizers(self) -> optim.Optimizer:
        optimizer = build_optimizer(*self.optimizer, self.parameters())
        # Stepped by on_train_epoch_end, not by Lightning, which would do so after the epoch's checkpoint is written.
        self.scheduler = build_lr_scheduler(*self.lr_scheduler, optimizer)
        if self.scheduler is not None and self.scheduler_state is not None:
            self.scheduler.load_state_dict(self.scheduler_state)
        return optimizer

    def on_train_epoch_start(self) -> None:
        self.nonfinite_step = None
        self.train_sums = None  # an epoch that is resumed in its middle does not start here, and keeps its sums

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        seed_device(self.device, mix(self.seed, "step", self.trainer.global_step, self.trainer.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = self.loss(logits, labels)
        self.train_sums = self._accumulate(self.train_sums, logits, labels, loss)
        self._track_nonfinite(loss.detach())
        return loss * self._ddp_weight(labels)

    def on_validation_epoch_start(self) -> None:
        self.valid_sums = None

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images)
        self.valid_sums = self._accumulate(self.valid_sums, logits, labels, self.loss(logits, labels))

    def on_validation_epoch_end(self) -> None:
        self._log_means("valid", self.valid_sums)

    def check_finite(self) -> None:
        """Waits for the device and looks at the training losses of this epoch so far.

        Raises:
            RunError: One was infinite or no number; no checkpoint has been written since.
        """
        if not self.stop_on_nonfinite_loss or self.nonfinite_step is None:
            return
        if (step := int(self._over_processes(self.nonfinite_step, "min"))) != FINITE:
            raise self._not_finite("training", f", step {step}")

    def on_train_epoch_end(self) -> None:
        """Closes the epoch; the callbacks that stop and write checkpoints come after it and see it whole."""
        self.check_finite()
        if self.stop_on_nonfinite_loss and not math.isfinite(self.epoch_metrics["valid_loss"]):
            raise self._not_finite("validation")
        self._log_means("train", self.train_sums)
        self._log({"lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        step_lr_scheduler(self.scheduler, valid_loss=self.epoch_metrics["valid_loss"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = self._over_processes(self.train_sums, "sum")
        if self.scheduler is not None:
            checkpoint["lr_scheduler"] = self.scheduler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_sums = checkpoint["train_sums"] if self.trainer.is_global_zero else None  # those of all processes
        self.scheduler_state = checkpoint.get("lr_scheduler")  # the scheduler itself is built later

    def _not_finite(self, split: str, step: str = "") -> RunError:
        checkpoint, change = Path(self.trainer.default_root_dir, LAST), "stop_on_nonfinite_loss=False"
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        return RunError(
            f"the {split} loss was not finite in epoch {self.trainer.current_epoch}{step}, at a learning rate of {lr:.3g}; "
            f"{f'the last checkpoint from before is {checkpoint}' if checkpoint.is_file() else 'there is no checkpoint yet'}. "
            f"Lower optimizer_params.lr or set precision: 32-true in a new run, or train on regardless with --set {change}",
            change=change,
        )

    def _ddp_weight(self, labels: Tensor) -> Tensor | float:
        """What the loss of this process is multiplied by, so that many processes train as one with all of their images.

        The engine takes the mean of the gradients over processes. That of a step is to be over images, but the last batch
        of an epoch may give a process one image more than another.
        """
        processes = self.trainer.world_size
        if getattr(self.loss, "reduction", "mean") == "sum":
            return processes
        if processes == 1 or not self.trainer.is_last_batch:
            return 1
        count = torch.full((), len(labels), dtype=torch.float32, device=labels.device)
        return processes * count / self._over_processes(count, "sum")

    def _over_processes(self, value: Tensor, operation: str) -> Tensor:
        return self.trainer.strategy.reduce(value.clone(), reduce_op=operation)  # which works in place

    def _track_nonfinite(self, loss: Tensor) -> None:
        """Notes on the device, without waiting for it, the first step whose loss is not finite."""
        step = torch.where(loss.isfinite(), FINITE, self.trainer.global_step)
        self.nonfinite_step = step if self.nonfinite_step is None else torch.minimum(self.nonfinite_step, step)

    @torch.no_grad()
    def _accumulate(self, sums: Tensor | None, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        """Adds a batch to the sums on the device, without waiting for it."""
        k = min(TOP_K, logits.shape[1])
        hits = logits.topk(k, dim=1).indices == labels[:, None]  # (N, k)
        count = torch.full((), len(labels), device=logits.device)
        total_loss = loss.detach() * (1 if getattr(self.loss, "reduction", "mean") == "sum" else count)
        batch = torch.stack([total_loss, hits[:, 0].sum(), hits.any(dim=1).sum(), count])
        batch = batch.to(torch.float32 if logits.device.type == "mps" else torch.float64)
        return batch if sums is None else sums.to(batch.device) + batch

    def _log_means(self, split: str, sums: Tensor) -> None:
        total = self._over_processes(sums, "sum")
        loss, correct, correct_top_k, count = total.tolist()  # the one time in an epoch that the device is waited for
        means = {"loss": loss / count, "acc": correct / count, f"top{TOP_K}_acc": correct_top_k / count}
        self._log({f"{split}_{name}": value for name, value in means.items()})

    def _log(self, metrics: dict[str, float]) -> None:
        self.epoch_metrics |= metrics
        self.log_dict(metrics, logger=False)  # for callbacks such as early stopping; trackers get epoch_metrics
