"""Builds the pipelines of torchvision transforms that the configuration lists, one for each split."""

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from utils.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]
Aspect = Literal["squash", "crop", "pad"]


class Fit:
    """Resizes images to (height, width), pixels, and keeps their aspect ratio; bilinear, antialiased.

    crop: The largest central rectangle of the target's aspect ratio, in whole pixels, is resized; the rest is lost.
    pad: The whole image is resized to the largest size within the target, and centered on black.
    """

    def __init__(self, size: Sequence[int], aspect: Literal["crop", "pad"]) -> None:
        self.size = tuple(size)
        self.aspect = aspect

    def __call__(self, image: Image.Image) -> Image.Image:
        target = self.size[::-1]
        if self.aspect == "crop":
            box = map(round, seen_box(image.size, self.size, "crop"))
            return image.crop(tuple(box)).resize(target, Image.Resampling.BILINEAR)
        inner = largest_within(target, image.size)
        canvas = Image.new(image.mode, target)
        canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), _centered(inner, target))
        return canvas


def largest_within(outer: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Returns width and height of the largest rectangle within `outer` that has the aspect ratio of `shape`.

    In whole numbers, so that an exported file computes the same.
    """
    (outer_width, outer_height), (width, height) = outer, shape
    return (
        min(outer_width, max(1, (2 * outer_height * width + height) // (2 * height))),
        min(outer_height, max(1, (2 * outer_width * height + width) // (2 * width))),
    )


def _centered(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def seen_box(image: tuple[int, int], size: Sequence[int], aspect: Aspect) -> tuple[float, float, float, float]:
    """Returns the box (x1, y1, x2, y2) of an image that the model sees; with pad it extends beyond the image.

    Args:
        image: Width and height, pixels.
        size: Height and width of the model's image.
        aspect: How the image is resized.
    """
    width, height = image
    target = (size[1], size[0])
    if aspect == "squash":
        return 0, 0, width, height
    if aspect == "crop":
        inner = largest_within(image, target)
        left, top = _centered(inner, image)
        return left, top, left + inner[0], top + inner[1]
    inner = largest_within(target, image)
    (left, top), across, down = _centered(inner, target), width / inner[0], height / inner[1]
    return -left * across, -top * down, (target[0] - left) * across, (target[1] - top) * down


class Pipeline:
    """Turns an RGB image of any size into a tensor, in two parts.

    Attributes:
        resize: To the size and colors that `augment` takes: deterministic, so that its result can be cached.
        augment: To the augmented tensor, with random numbers of torch's default generator.
    """

    def __init__(self, resize: Sequence[Callable], augment: Sequence[Callable]) -> None:
        self.resize = transforms.Compose(list(resize))
        self.augment = transforms.Compose(list(augment))

    @property
    def aspect(self) -> Aspect:
        """How images of another aspect ratio are resized."""
        return getattr(self.resize.transforms[0], "aspect", "squash")

    def __call__(self, image: Image.Image) -> Tensor:
        return self.augment(self.resize(image))


def build_transforms(
    *,
    image_size: Sequence[int],
    resize_size: Sequence[int] | None = None,
    aspect: Aspect = "squash",
    convert_to_grayscale: bool = False,
    image_augmentations: dict[str, dict[str, Any] | None] | None = None,
    tensor_augmentations: dict[str, dict[str, Any] | None] | None = None,
    normalization: dict[str, Sequence[float]] | None = None,
) -> Pipeline:
    """Builds the pipeline from an RGB image of any size to a tensor (channels, height, width).

    In this order: resize (bilinear, antialiased), grayscale, `image_augmentations`, tensor in [0, 1], `tensor_augmentations`,
    normalization. The pipeline is run once on a blank image to check its result.

    Args:
        image_size: [height, width] of the tensor, pixels.
        resize_size: [height, width] of the images that the augmentations get; None: image_size.
        aspect: How images of another aspect ratio are resized; with squash it is not kept.
        convert_to_grayscale: Whether the tensor has one channel instead of three.
        image_augmentations: Names and parameters of `torchvision.transforms` on PIL images, in order.
        tensor_augmentations: The same on tensors in [0, 1].
        normalization: `mean` and `std`, one value per channel; None: no normalization.

    Raises:
        ConfigError: torchvision rejects the parameters, or the pipeline does not return tensors of this shape.
        AttributeError: There is no such transform.
    """
    channels = 1 if convert_to_grayscale else 3
    size = tuple(resize_size or image_size)
    resize: list[Callable] = [transforms.Resize(size) if aspect == "squash" else Fit(size, aspect)]
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
        way = (
            f"; RandomResizedCrop or RandomCrop of size {list(image_size)} takes it from resize_size"
            if resize_size
            else ""
        )
        raise ConfigError(f"the augmentations turn an image into {got}; expected torch.float32 {expected}{way}")
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
