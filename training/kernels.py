"""For which batches cuDNN tries its kernels, to choose the fastest."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class KernelChoice(Callback):
    """Lets cuDNN try its kernels for full training batches; others take those chosen for their size, or else cuDNN's guess.

    It tries them at the first batch of each size, for 40 seconds on an H100 (GhostNet and EfficientNet-Lite0, 64 images, bf16).
    The last, smaller batch of an epoch would never earn that back.
    """

    def __init__(self, batch_size: int) -> None:
        """Takes the images of a full batch, for each process."""
        self.batch_size = batch_size

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        torch.backends.cudnn.benchmark = len(batch[1]) == self.batch_size

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        torch.backends.cudnn.benchmark = False
