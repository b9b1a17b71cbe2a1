"""What batched augmentations share: the protocol of a step, and torchvision's random draws for many samples at once.

A sample's draws all come from one row of uniform numbers in [0, 1), each step taking the same places of every row. So a
row depends on nothing but the generator and its place, and the params of an epoch are drawn in one call.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ATTEMPTS = 10  # torchvision's, at a rectangle that fits


class BatchedStep:
    """One augmentation of a batch: draws named parameters, lays them out as params, applies the params.

    Attributes:
        probability: Chance that a sample is transformed at all.
        uniforms: Numbers that `sample` takes for one sample.
        works_on_uint8: Whether it changes no value, and therefore runs on uint8 as well.
        size: Height and width, pixels, of what it returns.
    """

    probability = 1.0
    num_random = 0
    works_on_uint8 = False

    def __init__(self, transform: Any, size: tuple[int, int], white_value: float) -> None:
        """Takes the parameters from torchvision's transform.

        Args:
            transform: The configured transform of `torchvision.transforms`, which has checked its parameters.
            size: Height and width, pixels, of the images that reach this step.
            white_value: The value that stands for white in the parameters: 255 for transforms of PIL images, 1 for tensors.
        """
        self.size = size

    @staticmethod
    def unsupported_reason(transform: Any) -> str | None:
        """Returns why these parameters have no batched form, None if they have one."""
        return None

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Returns the parameters that torchvision would draw, by name, for each row of `uniforms` (N, self.num_random)."""
        return {}

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        """Returns what `apply` needs of the drawn parameters of `count` samples, (count, columns)."""
        return torch.empty(count, 0)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """Returns the transformed images, and leaves the given ones untouched.

        Args:
            images: (N, C, H, W), float32 in [0, 1], or uint8 if `works_on_uint8`.
            params: (N, columns), float32, on the same device.
        """
        raise NotImplementedError


def is_zero(values: Tensor) -> bool:
    """Whether all values are known to be zero at no cost: of one photo on the CPU, outside a compilation.

    On another device, the question would make the host wait; the answer is then no, and the work is done with the zeros.
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu" or len(values) != 1:
        return False
    return not values.any()


def uniform(uniforms: Tensor, low: float, high: float) -> Tensor:
    """Maps [0, 1) to [low, high), for `low` ≤ `high`."""
    if low > high:
        raise ValueError(f"a range goes from its lower to its upper end, not from {low} to {high}.")
    return low + (high - low) * uniforms


def integers(uniforms: Tensor, count: int | Tensor) -> Tensor:
    """Maps [0, 1) to 0, 1, …, `count` − 1, for `count` ≥ 1 (one number or one a sample)."""
    return (uniforms * count).floor()


def tries(uniforms: Tensor, area: float, scale: Sequence[float], ratio: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Draws the sides of rectangles as RandomResizedCrop and RandomErasing try them.

    Args:
        uniforms: (N, 2 · ATTEMPTS or more).
        area: Pixels of the image.
        scale: Range of the rectangle's share of `area`, drawn uniformly.
        ratio: Range of the first side over the second, drawn uniformly in its logarithm.

    Returns:
        The first and the second side, whole pixels, each (N, ATTEMPTS).
    """
    areas = area * uniform(uniforms[:, :ATTEMPTS], *scale)
    ratios = uniform(uniforms[:, ATTEMPTS : 2 * ATTEMPTS], math.log(ratio[0]), math.log(ratio[1])).exp()
    return (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()


def first_accepted(accepted: Tensor, *values: Tensor) -> list[Tensor]:
    """Returns of each of `values` (N, ATTEMPTS) the first accepted one; the first of all where none is."""
    first = accepted.int().argmax(1, keepdim=True)
    return [value.gather(1, first).squeeze(1) for value in values]


def per_channel(value: float | Sequence[float], white_value: float) -> list[float]:
    """Returns a fill value as a list: of one number for all channels, or of one for each."""
    return [float(v) / white_value for v in (value if isinstance(value, Sequence) else [value])]


def constant_columns(values: list[float], count: int) -> Tensor:
    """Returns (count, len(values)): constants travel in the params, so that no call copies anything to the device."""
    return torch.tensor(values, dtype=torch.float64).expand(count, -1)


def as_channels(columns: Tensor, images: Tensor) -> Tensor:
    """Returns (N, 1 or C, 1, 1) of columns (N, 1 or C)."""
    if columns.shape[1] not in (1, images.shape[1]):
        raise ValueError(f"{columns.shape[1]} values were given for images of {images.shape[1]} channels.")
    return columns[:, :, None, None]
