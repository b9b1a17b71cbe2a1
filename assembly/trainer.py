"""Lightning's Trainer of a configuration: device, precision and processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from training.checkpoints import AtomicCheckpointIO
from utils.config import Config
from utils.errors import ConfigError


def build_trainer(
    config: Config, folder: Path, callbacks: Sequence[Callback], *, first_checkpoint: dict[str, Any] | None = None
) -> Trainer:
    """Returns the Trainer of the run in `folder`.

    Args:
        config: The configuration.
        folder: The run's folder.
        callbacks: In the order in which they run; checkpoint callbacks run last.
        first_checkpoint: What is loaded first, whatever the file holds; None for the file.

    Raises:
        ConfigError: The machine has no such accelerator or not so many devices, or another number of processes was started.
    """
    plugins: list[AtomicCheckpointIO | LayerSync] = [AtomicCheckpointIO(first_checkpoint)]
    if uses_cuda(config.accelerator):  # torch has none for the CPU
        plugins.append(SyncBatchNorm())
    try:
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=precision(config),
            max_epochs=config.num_epochs,
            accumulate_grad_batches=config.accumulate_batches,
            gradient_clip_val=config.gradient_clip_norm,
            callbacks=list(callbacks),
            logger=False,  # the recorder feeds the trackers, so that none of them can end a training
            plugins=plugins,
            default_root_dir=folder,
            deterministic=config.deterministic,
            benchmark=False,  # training.kernels decides it for each batch
            inference_mode=config.compile is None,  # compiled models do not always take its tensors
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if (environment := getattr(trainer.strategy, "cluster_environment", None)) is not None:
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except (AssertionError, ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"accelerator {config.accelerator!r} with devices {config.devices!r}, strategy {config.strategy!r} and precision "
            f"{config.precision!r} cannot be used here: {str(error).splitlines()[0]}"
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


def precision(config: Config) -> str:
    """Returns the precision; for auto, the fastest that all of the devices used support natively."""
    if config.precision != "auto":
        return config.precision
    if not uses_cuda(config.accelerator):
        return "32-true"
    devices, available = config.devices, range(torch.cuda.device_count())
    used = devices if isinstance(devices, list) else available if devices == "auto" else available[:devices]
    # Not torch.cuda.is_bf16_supported(): it is true for cards that only emulate bfloat16, four times slower.
    return "bf16-mixed" if min(map(torch.cuda.get_device_capability, used)) >= (8, 0) else "16-mixed"
