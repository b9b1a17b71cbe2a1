"""The LightningModule: training and validation steps, metrics, optimizer and learning rate."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn, optim

from losses import depends_on_labels, mean_loss
from losses.auxiliary import GROUPS_CHANGED
from losses.targets import MoreTargets, sum_dtype
from models.averaging import AveragedWeights
from models.compilation import CompileMode, FullBatches
from models.finetuning.auxiliary_rows import cut_rows, join_rows
from models.finetuning.parameter_groups import backbone_parameters, head_modules, head_names, parameter_groups
from models.optimization import build_lr_scheduler, build_optimizer, scaled_lr, step_lr_scheduler
from utils.errors import ConfigError, RunError
from utils.runs.folder import LAST
from utils.seeding import mix, seed_device

TOP_K = 5
AUXILIARY = "auxiliary_rows"  # key of the rows of the last layer that learn auxiliary targets, for each state_dict
RAW = "raw_state_dict"  # key of the weights that are trained, in a checkpoint whose state_dict holds the averaged ones
FINITE = torch.iinfo(torch.int64).max  # instead of a step: every loss was finite


class Classifier(LightningModule):
    """Trains `model` to classify images.

    Each epoch it logs train_loss, train_acc, valid_loss, valid_acc, the top-5 accuracy of both splits, valid_mean_class_acc
    (the mean of the accuracies of the classes) and lr, the learning rate of the epoch's last step (of the backbone's last
    layers where layers have their own). With `ema_decay` valid_* are those of the averaged weights, and valid_raw_* those of
    the trained ones.

    Accuracies are correct predictions over images, in 0 … 1. Losses are means over the split, whatever the reduction of
    `loss`: over images, or as torch weighs them with class weights. No value depends on how the images fall into batches
    and processes, and each image counts once. With `targets` train_loss is still the mean of `loss`; their own metrics are
    logged too, among them train_total_loss, which is minimized.

    Args:
        model: Turns images (N, C, H, W) into logits (N, classes), and further columns for auxiliary targets.
        loss: Turns logits and labels (N,) into a scalar.
        optimizer, optimizer_params, lr_scheduler, lr_scheduler_params: As in `config.yml`.
        groups: Keyword arguments of `parameter_groups`; None for one group of all parameters.
        scheduler_step, warmup_epochs, accumulate_batches, gradient_clip_norm, ema_decay, freeze_epochs: As in `config.yml`.
        mixing: A `datamodules.mixing.Mixing` of training batches; None for none. Accuracies are then against the label with the
            larger share.
        flip_at_test: Whether validation takes the mean of the logits of each image and of its mirror image.
        targets: Targets beside the labels; None for none.
        stop_on_nonfinite_loss: Whether a NaN or infinite loss ends the training.
        seed: Seed of dropout, whose random numbers depend on it and on the step alone.
        channels_last: Whether images and weights have the memory format NHWC.
        compile_mode: Mode of torch.compile for full batches in a fit; None for eager.
        batch_size: Images of a full batch.
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
        groups: dict[str, Any] | None = None,
        scheduler_step: Literal["epoch", "batch"] = "epoch",
        warmup_epochs: float = 0,
        accumulate_batches: int = 1,
        gradient_clip_norm: float | None = None,
        ema_decay: float | None = None,
        freeze_epochs: int = 0,
        mixing: Any = None,
        flip_at_test: bool = False,
        targets: MoreTargets | None = None,
        stop_on_nonfinite_loss: bool = True,
        channels_last: bool = False,
        compile_mode: CompileMode | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # LBFGS flattens all gradients into one vector, which needs the contiguous format.
        self.memory_format = torch.channels_last if channels_last and optimizer != "LBFGS" else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        self.loss = loss
        self.optimizer = (optimizer, optimizer_params)
        self.lr_scheduler = (lr_scheduler, lr_scheduler_params)
        self.seed = seed
        self.groups = groups
        self.scheduler_step = scheduler_step
        self.warmup_epochs = warmup_epochs
        self.accumulate_batches = accumulate_batches
        self.gradient_clip_norm = gradient_clip_norm
        self.ema_decay = ema_decay
        self.freeze_epochs = freeze_epochs
        self.mixing = mixing
        self.flip_at_test = flip_at_test
        self.targets = targets
        self.num_groups = targets.num_groups if targets else 0  # logits of auxiliary targets
        self.average: AveragedWeights | None = None  # in a fit with an ema_decay
        self.averaged_state: dict[str, Tensor] | None = None  # of the checkpoint that is resumed
        self.frozen: list[nn.Parameter] = []  # parameters that are not trained in this epoch
        self.last_lr = math.nan  # of the last step
        self.window: Tensor | None = None  # denominators of the loss of the accumulated batches
        self.stop_on_nonfinite_loss = stop_on_nonfinite_loss
        self.compile_mode = compile_mode
        self.batch_size = batch_size
        self.full_batches: FullBatches | None = None  # in a fit with a compile_mode
        self.nonfinite_step: Tensor | None = None  # first step of this epoch whose loss was NaN or infinite, or FINITE
        self.scheduler: optim.lr_scheduler.LRScheduler | None = None
        self.scheduler_state: dict[str, Any] | None = None  # of the checkpoint that is resumed
        self.epoch_metrics: dict[str, float] = {}  # of the last complete epoch
        self.counted = False  # whether this batch is in train_sums: LBFGS evaluates one several times
        self.batch_of_step: list[int] = []  # which of the accumulated batches this is
        # Of loss, correct, correct among the top 5, images, denominators of the loss.
        self.train_sums: Tensor | None = None
        self.valid_sums: Tensor | None = None
        self.train_more: Tensor | None = None  # sums of the metrics of `targets`
        self.valid_more: Tensor | None = None
        self.raw_sums: Tensor | None = None  # as valid_sums, of the trained weights where averaged ones are validated
        self.valid_classes: Tensor | None = None  # (2, classes): correct predictions and images of each label

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        return self._split(self._outputs(images))[0]

    def _outputs(self, images: Tensor) -> Tensor:
        """Returns the logits of the classes and of auxiliary targets, (N, classes + num_groups)."""
        model = self.model if self.full_batches is None else self.full_batches
        return model(images.to(memory_format=self.memory_format))

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of the classes, and those of auxiliary targets."""
        if not self.num_groups:
            return outputs, outputs[:, :0]
        return outputs[:, : -self.num_groups], outputs[:, -self.num_groups :]

    def test_logits(self, images: Tensor) -> Tensor:
        """Returns the logits (N, classes) of validation and prediction."""
        return self._split(self._test_outputs(images, self._outputs))[0]

    def _test_outputs(self, images: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
        images = images.to(memory_format=self.memory_format)
        # Halves before the sum: with CUDA graphs the second call overwrites the logits of the first.
        return model(images) / 2 + model(images.flip(-1)) / 2 if self.flip_at_test else model(images)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.compile_mode is not None:
            self.full_batches = FullBatches(self.model, self.compile_mode, self.batch_size)

    def configure_optimizers(self) -> optim.Optimizer:
        optimizer, self.scheduler = self.build_optimization(
            self.steps_per_epoch if self.scheduler_step == "batch" else 1
        )
        if self.scheduler is not None and self.scheduler_state is not None:
            self.scheduler.load_state_dict(self.scheduler_state)
        return optimizer

    def build_optimization(self, steps_per_epoch: int) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler | None]:
        """Returns the optimizer and the scheduler, which is stepped `steps_per_epoch` times an epoch, as a training begins."""
        parameters = self.parameters() if self.groups is None else parameter_groups(self.model, **self.groups)
        optimizer = build_optimizer(*self.optimizer, parameters, may_fuse=self.gradient_clip_norm is None)
        # Stepped in on_train_epoch_end: Lightning would do it after the epoch's checkpoint is written.
        return optimizer, build_lr_scheduler(*self.lr_scheduler, optimizer, steps_per_epoch=steps_per_epoch)

    def warmup_factor(self, steps: int, steps_per_epoch: int) -> float:
        """Returns the factor of the learning rate in the step after `steps`."""
        if not self.warmup_epochs:
            return 1.0
        return min(1.0, (steps + 1) / max(1, round(self.warmup_epochs * steps_per_epoch)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in an epoch."""
        return math.ceil(self.trainer.datamodule.batches_per_epoch / self.accumulate_batches)

    def on_fit_start(self) -> None:
        if self.targets is not None and self.targets.distillation is not None:
            self.targets.distillation.to(self.device, next(self.model.parameters()).dtype)
        if self.ema_decay is None:
            return
        steps, horizon = self.steps_per_epoch * self.trainer.max_epochs, 1 / (1 - self.ema_decay)
        if horizon > steps + 1e-6:
            raise ConfigError(
                f"ema_decay: {self.ema_decay} averages over {horizon:,.0f} steps, and the training has {steps:,}; "
                f"expected at most {math.floor(1e6 * (1 - 1 / steps)) / 1e6:.6g}"
            )
        self.average = AveragedWeights(self.model, self.ema_decay)
        if self.averaged_state is not None:
            self.average.load_state_dict(self.averaged_state)

    def on_train_start(self) -> None:
        self._freeze()  # an epoch that is resumed in its middle has no on_train_epoch_start

    def _freeze(self) -> None:
        """Freezes the backbone and its batch-norm statistics in the first `freeze_epochs`, and trains them afterwards."""
        if self.freeze_epochs == 0:
            return
        is_frozen = self.current_epoch < self.freeze_epochs
        backbone = backbone_parameters(self.model)
        self.frozen = backbone if is_frozen else []
        # DDP expects the gradients that it saw at its start; in several processes they are dropped before the step.
        for parameter in backbone:
            parameter.requires_grad_(not is_frozen or self.trainer.world_size > 1)
        head = {id(part) for module in head_modules(self.model).values() for part in module.modules()}
        for module in self.model.modules():
            if hasattr(module, "running_mean") and id(module) not in head:
                module.train(not is_frozen)

    def on_train_epoch_start(self) -> None:
        self._freeze()
        self.nonfinite_step = None
        # An epoch that is resumed in its middle skips this hook and keeps its sums
        self.train_sums = self.train_more = None

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        self.batch_of_step = [batch_index] if self.accumulate_batches > 1 else []
        seed_device(
            self.device, mix(self.seed, "step", self.trainer.global_step, self.trainer.global_rank, *self.batch_of_step)
        )
        self.counted = False

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = self._mixed(*batch)
        loss, logits, task, more = self.batch_loss(images, labels)
        denominator = task[1]
        if not self.counted:
            self.train_sums = self._accumulate(self.train_sums, logits, labels, *task)
            self.train_more = more if self.train_more is None else self.train_more.to(more.device) + more
            self.counted = True
        self._track_nonfinite(loss.detach())
        weight = self._ddp_weight(denominator) if self.accumulate_batches == 1 else self._window_weight(denominator)
        return self._shared(loss * weight)

    def batch_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Returns the loss that is minimized, the logits, the task's loss with its denominator, and the sums of `targets`."""
        logits, groups = self._split(self._outputs(images))
        task = mean_loss(self.loss, logits, labels)
        if self.targets is None:
            return task[0], logits, task, None
        loss, more = self.targets(self.loss, images, (logits, groups), labels, task)
        return loss, logits, task, more

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a batch as it is trained on; LBFGS, which evaluates it several times, gets the same each time."""
        if self.mixing is None or not self.mixing.is_on(self.current_epoch, self.trainer.max_epochs):
            return images, labels
        return self.mixing(images, labels, self.trainer.global_step, *self.batch_of_step)

    def _window_weight(self, denominator: Tensor) -> Tensor | float:
        """Returns the factor of the loss of one of several batches that make a step; `on_before_optimizer_step` completes it.

        Lightning divides each loss by `accumulate_batches`, as if all batches had equally many images.
        """
        if self._reduction == "sum":
            return self.accumulate_batches * self.trainer.world_size
        self.window = denominator if self.window is None else self.window + denominator
        return self.accumulate_batches * denominator / self.batch_size

    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        for parameter in self.frozen:
            parameter.grad = None
        if self.window is not None:  # to the mean over all images, or their weights, of all processes
            total, self.window = self._over_processes(self.window, "sum"), None
            grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            factor = self.trainer.world_size * self.batch_size / total
            torch._foreach_mul_(grads, torch.where(total > 0, factor, 1.0))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        with scaled_lr(optimizer, self.warmup_factor(self.trainer.global_step, self.steps_per_epoch)):
            self.last_lr = optimizer.param_groups[0]["lr"]
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.scheduler_step == "batch":
            step_lr_scheduler(self.scheduler)
        if self.average is not None:
            self.average.update(self.model)

    def on_validation_epoch_start(self) -> None:
        self.valid_sums = self.raw_sums = self.valid_classes = self.valid_more = None
        if self.average is not None and self.trainer.world_size > 1:
            self.average.share_buffers()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Adds a batch to the metrics, and returns its logits."""
        images, labels = batch
        logits, groups = self._split(self._test_outputs(images, self._outputs))
        sums = mean_loss(self.loss, logits, labels)
        if self.average is not None:
            self.raw_sums = self._accumulate(self.raw_sums, logits, labels, *sums)
            logits, groups = self._split(self._test_outputs(images, self.average))
            sums = mean_loss(self.loss, logits, labels)
        self.valid_sums = self._accumulate(self.valid_sums, logits, labels, *sums)
        self.valid_classes = self._count_classes(self.valid_classes, logits, labels)
        if self.num_groups:
            hits = self.targets.hits(groups, labels)
            self.valid_more = hits if self.valid_more is None else self.valid_more + hits
        return logits

    def on_validation_epoch_end(self) -> None:
        self._log_means("valid", self.valid_sums)
        if self.valid_more is not None:
            self._log_more("valid", self.targets.accuracies, self.valid_sums, self.valid_more)
        if self.raw_sums is not None:
            self._log_means("valid_raw", self.raw_sums)
        correct, images = self._over_processes(self.valid_classes, "sum").cpu()
        self._log({"valid_mean_class_acc": (correct[images > 0].double() / images[images > 0]).mean().item()})

    def check_finite(self) -> None:
        """Checks the training losses of this epoch so far, which waits for the device.

        Raises:
            RunError: One was NaN or infinite; no checkpoint has been written since.
        """
        if not self.stop_on_nonfinite_loss or self.nonfinite_step is None:
            return
        if (step := int(self._over_processes(self.nonfinite_step, "min"))) != FINITE:
            raise self._not_finite("training", f", step {step}")

    def on_train_epoch_end(self) -> None:
        """Completes the epoch; the callbacks that stop and write checkpoints run after it."""
        self.check_finite()
        if self.stop_on_nonfinite_loss and not math.isfinite(self.epoch_metrics["valid_loss"]):
            raise self._not_finite("validation")
        self._log_means("train", self.train_sums)
        if self.train_more is not None:
            self._log_more("train", self.targets.names, self.train_sums, self.train_more)
        self._log({"lr": self.last_lr})
        if self.scheduler_step == "epoch":
            step_lr_scheduler(self.scheduler, valid_loss=self.epoch_metrics["valid_loss"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = self._over_processes(self.train_sums, "sum")
        if self.train_more is not None:
            checkpoint["train_more"] = self._over_processes(self.train_more, "sum")
        if self.scheduler is not None:
            checkpoint["lr_scheduler"] = self.scheduler.state_dict()
        if self.average is not None:  # what is evaluated and exported, in its place
            checkpoint[RAW] = checkpoint["state_dict"]
            averaged = {f"model.{name}": value for name, value in self.average.state_dict().items()}
            checkpoint["state_dict"] = checkpoint[RAW] | averaged
        if self.num_groups:
            head = [f"model.{name}" for name in sorted(head_names(self.model))]
            keys = [key for key in ("state_dict", RAW) if key in checkpoint]
            cut = {key: cut_rows(checkpoint[key], head, self.num_groups) for key in keys}
            checkpoint |= {key: state for key, (state, _) in cut.items()}
            checkpoint[AUXILIARY] = {key: rows for key, (_, rows) in cut.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for key, rows in checkpoint.get(AUXILIARY, {}).items():
            if {len(row) for row in rows.values()} != {self.num_groups}:
                raise ConfigError(GROUPS_CHANGED)
            checkpoint[key] = join_rows(checkpoint[key], rows)
        if RAW in checkpoint:
            names = self.model.state_dict().keys()
            self.averaged_state = {name: checkpoint["state_dict"][f"model.{name}"] for name in names}
            checkpoint["state_dict"] = checkpoint[RAW]
        # The sums of all processes continue in the first. The first format had no denominators: they were the images.
        sums = checkpoint["train_sums"]
        sums = torch.cat([sums, sums[3:]]) if len(sums) == 4 else sums
        self.train_sums = sums if self.trainer.is_global_zero else torch.zeros_like(sums)
        if (more := checkpoint.get("train_more")) is not None:
            self.train_more = more if self.trainer.is_global_zero else torch.zeros_like(more)
        self.scheduler_state = checkpoint.get("lr_scheduler")  # it is built later

    def _not_finite(self, split: str, step: str = "") -> RunError:
        checkpoint, change = Path(self.trainer.default_root_dir, LAST), "stop_on_nonfinite_loss=False"
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        return RunError(
            f"the {split} loss was not finite in epoch {self.trainer.current_epoch}{step}, at a learning rate of {lr:.3g}; "
            f"{f'the last checkpoint from before is {checkpoint}' if checkpoint.is_file() else 'there is no checkpoint yet'}. "
            f"Lower optimizer_params.lr or set precision: 32-true in a new run, or continue regardless with --set {change}",
            change=change,
        )

    def _ddp_weight(self, denominator: Tensor) -> Tensor | float:
        """Returns the factor of this process's loss that makes several processes train as one on all of their images.

        DDP averages the gradients over processes, as if their shares of a batch were equal. They are not in the last batch of
        an epoch, where a process may have one image more than another, nor with class weights.
        """
        processes = self.trainer.world_size
        if self._reduction == "sum":
            return processes
        if processes == 1 or not (self.trainer.is_last_batch or depends_on_labels(self.loss)):
            return 1
        return processes * denominator / self._over_processes(denominator, "sum")

    def _shared(self, loss: Tensor) -> Tensor:
        """Returns the loss with the value over all processes for LBFGS, which decides by it how long to search."""
        if self.optimizer[0] != "LBFGS" or self.trainer.world_size == 1:
            return loss
        return loss + (self._over_processes(loss.detach(), "mean") - loss.detach())

    @property
    def _reduction(self) -> str:
        return getattr(self.loss, "reduction", "mean")

    def _over_processes(self, value: Tensor, operation: str) -> Tensor:
        return self.trainer.strategy.reduce(value.clone(), reduce_op=operation)  # which works in place

    def _track_nonfinite(self, loss: Tensor) -> None:
        """Keeps the first step whose loss is NaN or infinite, without waiting for the device."""
        step = torch.where(loss.isfinite(), FINITE, self.trainer.global_step)
        self.nonfinite_step = step if self.nonfinite_step is None else torch.minimum(self.nonfinite_step, step)

    @torch.no_grad()
    def _accumulate(
        self, sums: Tensor | None, logits: Tensor, labels: Tensor, loss: Tensor, denominator: Tensor
    ) -> Tensor:
        """Adds a batch to the sums on the device, without waiting for it; of probabilities, the largest one's label counts."""
        labels = labels.argmax(1) if labels.is_floating_point() else labels
        k = min(TOP_K, logits.shape[1])
        hits = logits.topk(k, dim=1).indices == labels[:, None]  # (N, k)
        count = torch.full((), len(labels), device=logits.device)
        total_loss = loss.detach() if self._reduction == "sum" else loss.detach() * denominator
        batch = torch.stack([total_loss, hits[:, 0].sum(), hits.any(dim=1).sum(), count, denominator])
        batch = batch.to(sum_dtype(logits.device))
        return batch if sums is None else sums.to(batch.device) + batch

    @torch.no_grad()
    def _count_classes(self, counts: Tensor | None, logits: Tensor, labels: Tensor) -> Tensor:
        """Adds a batch to the correct predictions and images of each label, without waiting for the device."""
        counts = logits.new_zeros(2, logits.shape[1], dtype=torch.float32) if counts is None else counts
        is_correct = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices[:, 0] == labels  # of ties, as above
        return counts.index_add(1, labels, torch.stack([is_correct, torch.ones_like(is_correct)]).to(counts.dtype))

    def _log_means(self, split: str, sums: Tensor) -> None:
        total = self._over_processes(sums, "sum")
        # The one time in an epoch that the host waits for the device.
        loss, correct, correct_top_k, count, denominator = total.tolist()
        means = {"acc": correct / count, f"top{TOP_K}_acc": correct_top_k / count}
        means = {"loss": loss / denominator if denominator else math.nan} | means
        self._log({f"{split}_{name}": value for name, value in means.items()})

    def _log_more(self, split: str, names: Sequence[str], sums: Tensor, more: Tensor) -> None:
        """Logs the metrics of `targets`: losses over the denominators of the task's, accuracies over images."""
        *_, images, denominator = self._over_processes(sums, "sum").tolist()
        values = zip(names, self._over_processes(more, "sum").tolist(), strict=True)
        divisors = {"loss": denominator or math.nan, "acc": images}
        self._log({f"{split}_{name}": value / divisors[name.rpartition("_")[2]] for name, value in values})

    def _log(self, metrics: dict[str, float]) -> None:
        self.epoch_metrics |= metrics
        self.log_dict(metrics, logger=False)  # for early stopping; trackers get epoch_metrics
