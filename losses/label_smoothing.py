"""Cross entropy with smoothed labels.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7:
https://arxiv.org/abs/1512.00567
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class LabelSmoothingCrossEntropy(nn.CrossEntropyLoss):
    """epsilon · mean over the classes of −log p + (1 − epsilon) · negative log-likelihood of the label.

    `torch.nn.CrossEntropyLoss(label_smoothing=epsilon)` under the study's name and parameters.

    Args:
        epsilon: Share of the probability that is spread over all classes, 0 … 1.
        reduction: What becomes of the losses of a batch.
        weight: Of each class, (classes,), as torch defines it.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        reduction: Literal["mean", "sum", "none"] = "mean",
        weight: Tensor | None = None,
    ) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon}; expected 0 … 1")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
        super().__init__(weight, label_smoothing=epsilon, reduction=reduction)
        self.epsilon = epsilon

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of logits (N, classes) and labels (N,) or probabilities (N, classes): a scalar, or (N,)."""
        if self.weight is not None or labels.is_floating_point():
            return super().forward(logits, labels)
        # As the study wrote it: torch's differs in the last bit, and so would every training.
        log_probabilities = F.log_softmax(logits, dim=1)
        uniform = -log_probabilities.mean(dim=1)
        likelihood = F.nll_loss(log_probabilities, labels, reduction="none")
        losses = self.epsilon * uniform + (1 - self.epsilon) * likelihood
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()
