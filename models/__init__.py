"""The architectures that a configuration can name; `build_model` is the entry."""

from collections.abc import Callable, Sequence

from torch import nn

from models.ghostnet import GhostNet
from models.hardnet import HARDNETS
from models.squeezenext import SQUEEZENEXTS
from models.timm_models import build_timm
from models.torchvision_models import TORCHVISION_MODELS
from utils.config.architectures import ARCHITECTURE_LIMITS, TIMM, architecture_problems
from utils.errors import ConfigError

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "ghost": GhostNet,
    **SQUEEZENEXTS,
    **HARDNETS,
    **TORCHVISION_MODELS,
}


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def build_model(
    architecture: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float | None = None,
    out_channels: int | None = None,
    width_multiplier: float = 1.0,
    image_size: Sequence[int] | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """Builds a model with random weights, which turns images (N, in_channels, H, W) into logits (N, num_classes).

    Args:
        architecture: A name in `ARCHITECTURES`, or `timm/` and the name of a model of timm.
        num_classes: Number of logits.
        in_channels: 3 for color images, 1 for gray ones.
        dropout: Probability before the last layer; None for no dropout.
        out_channels: Width of the last hidden layer of ghost, else None.
        width_multiplier: Factor of ghost's other widths.
        image_size: Height and width, pixels, for which a model of timm is built and tried.
        drop_path: Maximum probability of stochastic depth; None for the architecture's default.

    Raises:
        ConfigError: There is no such architecture, or it does not take a setting.
    """
    for key, problem in architecture_problems(
        architecture,
        image_size=image_size,
        dropout=dropout,
        out_channels=out_channels,
        width_multiplier=width_multiplier,
        drop_path=drop_path,
    ):
        raise ConfigError(f"{key}: {problem}")
    common = {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout}
    if architecture.startswith(TIMM):
        return build_timm(architecture.removeprefix(TIMM), **common, image_size=image_size, drop_path=drop_path)
    if drop_path is not None:
        common["drop_path"] = drop_path
    if ARCHITECTURE_LIMITS[architecture].out_channels:
        common |= {"out_channels": out_channels, "width_multiplier": width_multiplier}
    return ARCHITECTURES[architecture](**common)
