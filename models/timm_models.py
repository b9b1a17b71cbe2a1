"""Any classification model of timm, with random weights, named `timm/<name>` in a configuration.

Wightman, "PyTorch Image Models": https://github.com/huggingface/pytorch-image-models
"""

import difflib
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from utils.errors import ConfigError

# What models of timm raise, deep inside, for settings that they do not take.
REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def build_timm(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    dropout: float | None,
    image_size: Sequence[int] | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """Builds a model of timm that turns images (N, in_channels, H, W) into logits (N, num_classes).

    Args:
        name: A name of `timm.list_models()`, such as "mobilenetv3_small_100", or of `timm.list_pretrained()`, which names
            weights too.
        num_classes: Number of logits.
        in_channels: 3 for color images, 1 for gray ones.
        dropout: Probability before the last layer; None for none, whatever timm's default.
        image_size: Height and width, pixels. A model of a fixed input size is built for it, and one such image is tried.
            None for timm's own size, without a trial.
        drop_path: Maximum probability of stochastic depth; None for timm's default.

    Raises:
        ConfigError: timm has no such model, or it does not take a setting.
    """
    # timm takes seconds to import, and most runs do not need it.
    import timm

    names = timm.list_pretrained(f"{name.partition('.')[0]}.*") if "." in name else timm.list_models()
    if name not in names:
        raise ConfigError(_unknown(name, names or timm.list_models()))
    settings = {} if drop_path is None else {"drop_path_rate": drop_path}
    if image_size is not None and timm.models.get_pretrained_cfg(name).fixed_input_size:
        settings["img_size"] = tuple(image_size)
    try:
        model = timm.create_model(
            name, num_classes=num_classes, in_chans=in_channels, drop_rate=dropout or 0.0, **settings
        )
    except REFUSALS as error:
        given = {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout, **settings}
        raise ConfigError(f"timm/{name} cannot be built with {given}: {_reason(error)}") from error
    if model.num_classes != num_classes:
        raise ConfigError(f"timm/{name} is not a classification model: it has no logits")
    if dropout is not None and not _has_dropout(model, dropout):
        raise ConfigError(f"timm/{name} has no dropout that can be set; dropout must be None")
    if drop_path and not any("DropPath" in type(module).__name__ for module in model.modules()):
        raise ConfigError(f"timm/{name} has no stochastic depth that can be set; drop_path must be None")
    if image_size is not None:
        _try_image(model, name, in_channels, image_size)
    return model


def _unknown(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), names, n=3)
    suggestion = f" Nearest: {', '.join(f'timm/{candidate}' for candidate in close)}." if close else ""
    return f"'timm/{name}' is not a model of timm.{suggestion} `timm.list_models()` lists them all."


def _has_dropout(model: nn.Module, dropout: float) -> bool:
    """Returns whether the model has `dropout`: as a layer, or as the attribute of models that drop without a layer."""
    layers = (module.p for module in model.modules() if isinstance(module, nn.Dropout))
    return dropout in (getattr(model, "drop_rate", None), *layers)


def _try_image(model: nn.Module, name: str, in_channels: int, image_size: Sequence[int]) -> None:
    height, width = image_size
    model.eval()  # neither moves the statistics of batch norm nor draws random numbers
    try:
        with torch.no_grad():
            model(torch.zeros(1, in_channels, height, width))
    except REFUSALS as error:
        raise ConfigError(f"timm/{name} does not take images of {height}×{width} pixels: {_reason(error)}") from error
    model.train()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
