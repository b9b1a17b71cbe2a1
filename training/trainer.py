"""Lightning's Trainer for a run: device, precision and processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from training.checkpoints import AtomicCheckpointIO
from utils.errors import ConfigError

Devices = Literal["auto"] | int | list[int]


def build_trainer(
    folder: Path,
    callbacks: Sequence[Callback],
    *,
    accelerator: str,
    devices: Devices,
    num_nodes: int,
    strategy: str,
    precision: str,
    num_epochs: int,
    deterministic: bool,
    compiled: bool,
    accumulate_batches: int = 1,
    gradient_clip_norm: float | None = None,
    first_checkpoint: dict[str, Any] | None = None,
) -> Trainer:
    """Returns the Trainer of the run in `folder`.

    Args:
        folder: The run's folder.
        callbacks: In the order in which they run; checkpoint callbacks run last.
        accelerator, devices, num_nodes, strategy, precision, num_epochs, deterministic: As in `config.yml`.
        compiled: Whether torch.compile is used.
        accumulate_batches, gradient_clip_norm: As in `config.yml`.
        first_checkpoint: What is loaded first, whatever the file holds; None for the file.

    Raises:
        ConfigError: The machine has no such accelerator or not so many devices, or another number of processes was started.
    """
    on_cuda = uses_cuda(accelerator)
    plugins: list[AtomicCheckpointIO | LayerSync] = [AtomicCheckpointIO(first_checkpoint)]
    if on_cuda:  # torch has none for the CPU
        plugins.append(SyncBatchNorm())
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=resolve_precision(precision, accelerator=accelerator, devices=devices),
            max_epochs=num_epochs,
            accumulate_grad_batches=accumulate_batches,
            gradient_clip_val=gradient_clip_norm,
            callbacks=list(callbacks),
            logger=False,  # the recorder feeds the trackers, so that none of them can end a training
            plugins=plugins,
            default_root_dir=folder,
            deterministic=deterministic,
            benchmark=on_cuda and not deterministic,  # cuDNN chooses its kernels at the first batch of each size
            inference_mode=not compiled,  # compiled models do not always take its tensors
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if (environment := getattr(trainer.strategy, "cluster_environment", None)) is not None:
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except (AssertionError, ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"accelerator {accelerator!r} with devices {devices!r}, strategy {strategy!r} and precision {precision!r} cannot "
            f"be used here: {str(error).splitlines()[0]}"
        ) from error
    return trainer


class SyncBatchNorm(TorchSyncBatchNorm):
    """Batch norm over the batches of all processes, also in networks of timm.

    torch's conversion would leave out the activations that timm keeps within its batch norms.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        if any(type(module).__module__.startswith("timm.") for module in model.modules()):
            from timm.layers import convert_sync_batchnorm

            return convert_sync_batchnorm(model)
        return super().apply(model)


def uses_cuda(accelerator: str) -> bool:
    return torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")


def resolve_precision(precision: str, *, accelerator: str, devices: Devices) -> str:
    """Returns the precision; for auto, the fastest that all of the devices used support natively."""
    if precision != "auto":
        return precision
    if not uses_cuda(accelerator):
        return "32-true"
    available = range(torch.cuda.device_count())
    used = devices if isinstance(devices, list) else available if devices == "auto" else available[:devices]
    # Not torch.cuda.is_bf16_supported(): it is true for cards that only emulate bfloat16, four times slower.
    return "bf16-mixed" if min(map(torch.cuda.get_device_capability, used)) >= (8, 0) else "16-mixed"
