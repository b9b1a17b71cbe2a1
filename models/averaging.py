"""Exponential moving average of a model's weights, by timm.

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018: https://arxiv.org/abs/1803.05407
Tan and Le, "EfficientNet", ICML 2019, evaluate an exponential moving average: https://arxiv.org/abs/1905.11946
"""

import torch
from torch import Tensor, nn


class AveragedWeights:
    """average ← decay · average + (1 − decay) · weight after each step, of parameters and batch-norm statistics alike.

    The average starts at the weights before the first step. This is no module, so that a checkpoint names each weight once.

    Args:
        model: On its device.
        decay: In 0 … 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        from timm.utils import ModelEmaV3  # timm takes seconds to import

        self.average = ModelEmaV3(model, decay=decay)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the logits of the averaged model, in evaluation mode."""
        return self.average.module(images)

    def update(self, model: nn.Module) -> None:
        self.average.update(model)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average.module.load_state_dict(state)

    def share_buffers(self) -> None:
        """Gives every process the first one's batch-norm statistics, which DDP shares for the trained model."""
        for buffer in self.average.module.buffers():
            torch.distributed.broadcast(buffer, src=0)
