"""Cross entropy with smoothed labels.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7:
https://arxiv.org/abs/1512.00567
"""

from typing import Literal

from torch import Tensor, nn


class LabelSmoothingCrossEntropy(nn.CrossEntropyLoss):
    """epsilon · mean over the classes of −log p + (1 − epsilon) · negative log-likelihood of the label.

    This is `torch.nn.CrossEntropyLoss(label_smoothing=epsilon)` under the study's name and parameters. It takes logits
    (N, classes) and labels (N,), or probabilities (N, classes), and returns a scalar, or (N,) without reduction. The study
    computed the same in another order, which differs by rounding.

    Args:
        epsilon: Probability that is spread over all classes, 0 … 1.
        reduction: Over the losses of a batch.
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
