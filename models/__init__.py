"""The networks that a configuration can name."""

from collections.abc import Callable

from torch import nn

from models.ghostnet import GhostNet
from utils.architectures import ARCHITECTURE_LIMITS
from utils.errors import ConfigError
from utils.nearest import nearest

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"ghost": GhostNet}


def build_model(
    architecture: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float | None = None,
    out_channels: int | None = None,
) -> nn.Module:
    """Builds a network with random weights; it turns images (N, in_channels, H, W) into logits (N, num_classes).

    Args:
        architecture: A name in `ARCHITECTURES`.
        num_classes: Number of logits.
        in_channels: 3 for colour images, 1 for gray ones.
        dropout: Probability before the last layer; None for a network that has no dropout, or to have none.
        out_channels: Width of the last hidden layer of a network that lets it be chosen, else None.

    Raises:
        ConfigError: There is no such architecture, or it does not take what was given.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"'{architecture}' is not an architecture.{nearest(architecture, ARCHITECTURES)}")
    limits = ARCHITECTURE_LIMITS[architecture]
    if dropout is not None and not limits.dropout:
        raise ConfigError(f"{architecture} has no dropout layer; dropout must be None")
    if (out_channels is not None) != limits.out_channels:
        raise ConfigError(
            f"{architecture} needs out_channels" if limits.out_channels else f"{architecture} takes no out_channels"
        )
    width = {} if out_channels is None else {"out_channels": out_channels}
    return ARCHITECTURES[architecture](num_classes=num_classes, in_channels=in_channels, dropout=dropout, **width)
