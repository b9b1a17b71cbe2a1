"""Builds the pipelines of torchvision transforms that the configuration lists, one for each split."""

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from utils.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]


class Pipeline:
    """Turns an RGB image of any size into a tensor, in two parts.

    Attributes:
        resize: To the size and colors that the model sees: deterministic, so that its result can be cached.
        augment: To the augmented tensor, with random numbers of torch's default generator.
    """

    def __init__(self, resize: Sequence[Callable], augment: Sequence[Callable]) -> None:
        self.resize = transforms.Compose(list(resize))
        self.augment = transforms.Compose(list(augment))

    @property
    def transforms(self) -> list[Callable]:
        return [*self.resize.transforms, *self.augment.transforms]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.augment(self.resize(image))


def build_transforms(
    *,
    image_size: Sequence[int],
    convert_to_grayscale: bool = False,
    image_augmentations: dict[str, dict[str, Any] | None] | None = None,
    tensor_augmentations: dict[str, dict[str, Any] | None] | None = None,
    normalization: dict[str, Sequence[float]] | None = None,
) -> Pipeline:
    """Builds the pipeline from an RGB image of any size to a tensor (channels, height, width).

    In this order: resize without keeping the aspect ratio (bilinear, antialiased), grayscale, `image_augmentations`, tensor
    in [0, 1], `tensor_augmentations`, normalization. The pipeline is run once on a blank image to check its result.

    Args:
        image_size: [height, width], pixels.
        convert_to_grayscale: Whether the tensor has one channel instead of three.
        image_augmentations: Names and parameters of `torchvision.transforms` on PIL images, in order.
        tensor_augmentations: The same on tensors in [0, 1].
        normalization: `mean` and `std`, one value per channel; None: no normalization.

    Raises:
        ConfigError: torchvision rejects the parameters, or the pipeline does not return tensors of this shape.
        AttributeError: There is no such transform.
    """
    channels = 1 if convert_to_grayscale else 3
    resize: list[Callable] = [transforms.Resize(tuple(image_size))]
    if convert_to_grayscale:
        resize.append(transforms.Grayscale())
    augment = [build_transform(name, params) for name, params in (image_augmentations or {}).items()]
    augment.append(transforms.ToTensor())
    augment += [build_transform(name, params) for name, params in (tensor_augmentations or {}).items()]
    if normalization is not None:
        augment.append(transforms.Normalize(normalization["mean"], normalization["std"]))
    pipeline = Pipeline(resize, augment)
    result = pipeline(Image.new("RGB", (64, 48)))
    expected = (channels, *image_size)
    if not isinstance(result, Tensor) or result.dtype != torch.float32 or tuple(result.shape) != expected:
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise ConfigError(f"the augmentations turn an image into {got}; expected torch.float32 {expected}")
    return pipeline


def build_transform(name: str, params: dict[str, Any] | None) -> Callable:
    """Builds `torchvision.transforms.<name>`; an enumeration, such as `interpolation`, is given by its value.

    Raises:
        ConfigError: torchvision rejects the parameters; with its own message.
        AttributeError: There is no such transform.
    """
    cls, given = getattr(transforms, name), dict(params or {})
    try:
        for key, parameter in inspect.signature(cls).parameters.items():
            if isinstance(parameter.default, Enum) and isinstance(given.get(key), str):
                given[key] = type(parameter.default)(given[key])
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error
