"""The losses that a configuration can name: this project's own, and every one of `torch.nn`."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from losses.label_smoothing import LabelSmoothingCrossEntropy
from utils.errors import ConfigError

LOSSES: dict[str, type[nn.Module]] = {"LabelSmoothingCrossEntropy": LabelSmoothingCrossEntropy}


def build_loss(loss_function: str, loss_params: dict[str, Any] | None = None, *, num_classes: int = 196) -> nn.Module:
    """Builds a loss and tries it on logits (2, num_classes) and two labels.

    Args:
        loss_function: A name in `LOSSES`, or a loss of `torch.nn`.
        loss_params: Its parameters; a list, such as the weight of each class, becomes a tensor.
        num_classes: Number of classes it will see.

    Raises:
        ConfigError: The loss does not take logits with class labels, or does not return a scalar.
        AttributeError, TypeError, ValueError: There is no such loss, or a parameter is wrong.
    """
    cls = LOSSES.get(loss_function) or getattr(nn, loss_function)
    params = {
        name: torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else value
        for name, value in (loss_params or {}).items()
    }
    loss = cls(**params)
    try:
        with warnings.catch_warnings(action="ignore"):  # what a loss for another task warns of, it is refused for
            value = loss(torch.zeros(2, num_classes), torch.tensor([0, num_classes - 1]))
    # Losses for other tasks fail here in ways of their own.
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"'{loss_function}' does not take logits (N, classes) with labels (N,): {reason}") from error
    if value.shape != ():
        raise ConfigError(f"'{loss_function}' returns {tuple(value.shape)} values, not a scalar; set reduction: mean")
    return loss


def require_probabilities(loss: nn.Module, num_classes: int) -> None:
    """Tries a loss on probabilities (N, classes) in place of labels.

    Raises:
        ConfigError: It does not take them.
    """
    try:
        loss(torch.zeros(2, num_classes), torch.full((2, num_classes), 1 / num_classes))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"mixed images have probabilities in place of labels, which {type(loss).__name__} does not take "
            f"({str(error).splitlines()[0]}); use LabelSmoothingCrossEntropy or CrossEntropyLoss, or do not mix"
        ) from error


def depends_on_labels(loss: nn.Module) -> bool:
    """Returns whether the mean of `loss` is over something else than the images: class weights, or labels it ignores."""
    return isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and (loss.weight is not None or loss.ignore_index >= 0)


def mean_loss(loss: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `loss` of a batch and the denominator of its mean; both are 0 where every label is ignored.

    With class weights torch divides the sum over labels by their weights, but that over probabilities by the images. Here both
    are divided by the weights, so that the loss of images mixed in shares is the mean of the losses of both labels in these
    shares.

    Args:
        loss: A loss of `build_loss`.
        logits: (N, classes).
        labels: (N,), or probabilities (N, classes).
    """
    if labels.is_floating_point():
        labels = labels.to(torch.promote_types(labels.dtype, logits.dtype))
    value, denominator = loss(logits, labels), image_weights(loss, labels).sum()
    if depends_on_labels(loss):
        if labels.is_floating_point() and loss.reduction == "mean":
            value = value * len(labels) / torch.where(denominator > 0, denominator, 1)
        value = torch.where(denominator > 0, value, torch.zeros_like(value))
    return value, denominator


def image_weights(loss: nn.Module, labels: Tensor) -> Tensor:
    """Returns the weight of each image in the mean of `loss`, (N,), without a copy to the host.

    It is 1; with class weights that of the label, with smoothed labels too, as torch defines it; for probabilities, the mean
    of those of the labels, see `mean_loss`; and 0 for an ignored label.

    Args:
        loss: A loss of `build_loss`.
        labels: (N,), or probabilities (N, classes).
    """
    if not depends_on_labels(loss):
        return torch.ones(len(labels), dtype=torch.float32, device=labels.device)
    if labels.is_floating_point():
        return (labels * loss.weight).sum(dim=1)  # elementwise: a product of matrices would lose digits under autocast
    weights = torch.ones(len(labels), device=labels.device) if loss.weight is None else loss.weight[labels]
    return weights * (labels != loss.ignore_index)
