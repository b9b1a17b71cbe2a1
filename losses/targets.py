"""The loss that is minimized where there are targets beside the labels: a teacher's predictions, groups of the classes."""

import torch
from torch import Tensor, nn

from losses import image_weights
from losses.auxiliary import AuxiliaryTargets
from losses.distillation import Distillation


class MoreTargets(nn.Module):
    """(1 − weight) · task + weight · distillation + auxiliary weight · cross entropy of each grouping.

    Each term is the mean over the images, weighted as the task's loss weighs them, or the sum where the task's loss is one.

    Args:
        distillation: None without a teacher.
        auxiliary: None without auxiliary targets.

    Attributes:
        names: Of the metrics whose sums `forward` returns.
        accuracies: Of the metrics whose sums `hits` returns, the last of `names`.
    """

    def __init__(self, distillation: Distillation | None, auxiliary: AuxiliaryTargets | None) -> None:
        super().__init__()
        self.distillation = distillation
        self.auxiliary = auxiliary
        self.num_groups = auxiliary.num_logits if auxiliary else 0
        self.accuracies = tuple(f"{name}_acc" for name in auxiliary.names) if auxiliary else ()
        self.names = ("total_loss", *(["distillation_loss"] if distillation else []), *self.accuracies)

    def forward(
        self,
        loss: nn.Module,
        images: Tensor,
        outputs: tuple[Tensor, Tensor],
        labels: Tensor,
        task: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss of a batch, and the sums over its images of the metrics `names`.

        Args:
            loss: The task's.
            images: What the model got, (N, C, H, W).
            outputs: Logits of the classes (N, classes) and of the groups (N, num_groups).
            labels: (N,), or probabilities (N, classes).
            task: The task's loss and its denominator, of `mean_loss`.
        """
        logits, groups = outputs
        total, denominator = task
        is_sum = getattr(loss, "reduction", "mean") == "sum"
        divisor = torch.ones_like(denominator) if is_sum else torch.where(denominator > 0, denominator, 1)
        weights, sums = image_weights(loss, labels), []
        if self.distillation:
            divergence = (weights * self.distillation(images, logits)).sum()
            total = (1 - self.distillation.weight) * total + self.distillation.weight * divergence / divisor
            sums.append(divergence)
        if self.auxiliary:
            total = total + self.auxiliary.weight * (weights * self.auxiliary.losses(groups, labels)).sum() / divisor
        sums = [total * divisor, *sums, *self.hits(groups, labels)]
        return total, torch.stack([each.detach().to(sum_dtype(logits.device)) for each in sums])

    def hits(self, groups: Tensor, labels: Tensor) -> Tensor:
        """Returns the number of correct predictions of each grouping."""
        if not self.auxiliary:
            return groups.new_zeros(0, dtype=sum_dtype(groups.device))
        return self.auxiliary.hits(groups, labels).to(sum_dtype(groups.device))


def sum_dtype(device: torch.device) -> torch.dtype:
    """Returns the type of sums over an epoch; Apple's devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
