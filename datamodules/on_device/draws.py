"""The protocol of a batched augmentation, and torchvision's random draws for many samples at once.

All draws of a sample come from one row of uniform numbers in [0, 1); each step reads the same columns of every row. A row
therefore depends on the generator and its position only, and the parameters of an epoch are drawn in one call.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ATTEMPTS = 10  # torchvision's, to find a rectangle that fits


class BatchedStep:
    """One augmentation of a batch: samples named parameters, packs them into columns, applies the columns.

    Attributes:
        transform: torchvision's.
        probability: Of a sample being transformed at all: `p`, in transforms that have one.
        num_random: Uniform numbers that `sample` needs for one image.
        works_on_uint8: Whether it only moves pixels, and so needs no conversion to float.
        input_size, size: Height and width, pixels, of the images that it takes and of those that it returns.
    """

    num_random = 0
    works_on_uint8 = False

    def __init__(self, transform: Any, size: tuple[int, int], white_value: float) -> None:
        """Takes the parameters from torchvision's transform.

        Args:
            transform: A transform of `torchvision.transforms`, which has validated its parameters.
            size: Height and width, pixels, of the images that reach this step.
            white_value: The value of white in the parameters: 255 for transforms of PIL images, 1 for tensors.
        """
        self.transform = transform
        self.probability = getattr(transform, "p", 1.0)
        self.input_size = self.size = size

    @staticmethod
    def unsupported_reason(transform: Any) -> str | None:
        """Returns why these parameters have no batched implementation, or None."""
        return None

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Maps uniform numbers (N, num_random) to the parameters that torchvision would draw, by name."""
        return {}

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        """Packs the parameters of `count` samples into the columns that `apply` needs, (count, columns); here as drawn."""
        return torch.stack([*sampled.values()], 1) if sampled else torch.empty(count, 0)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """Returns the transformed images; the given ones are not modified.

        Args:
            images: (N, C, H, W), float32 in [0, 1], or uint8 if `works_on_uint8`.
            params: (N, columns), float32, on the same device.
        """
        raise NotImplementedError


def is_zero(values: Tensor) -> bool:
    """Whether all values are known to be zero: asked for a single image on the CPU only, outside torch.compile.

    On another device the question would synchronize the host with it, so the answer is False and the zeros are applied.
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu" or len(values) != 1:
        return False
    return not values.any()


def uniform(uniforms: Tensor, low: float, high: float) -> Tensor:
    """Maps [0, 1) to [low, high), for `low` ≤ `high`."""
    if low > high:
        raise ValueError(f"expected a range from low to high, not from {low} to {high}.")
    return low + (high - low) * uniforms


def integers(uniforms: Tensor, count: int | Tensor) -> Tensor:
    """Maps [0, 1) to 0, 1, …, `count` − 1, for `count` ≥ 1 (one number or one a sample)."""
    return (uniforms * count).floor()


def tries(uniforms: Tensor, area: float, scale: Sequence[float], ratio: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Draws the candidate rectangles of RandomResizedCrop and RandomErasing.

    Args:
        uniforms: (N, 2 · ATTEMPTS or more).
        area: Pixels of the image.
        scale: Range of the rectangle's fraction of `area`, drawn uniformly.
        ratio: Range of the first side divided by the second, log-uniform.

    Returns:
        The first and the second side, whole pixels, each (N, ATTEMPTS).
    """
    areas = area * uniform(uniforms[:, :ATTEMPTS], *scale)
    ratios = uniform(uniforms[:, ATTEMPTS : 2 * ATTEMPTS], math.log(ratio[0]), math.log(ratio[1])).exp()
    return (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()


def first_accepted(accepted: Tensor, *values: Tensor) -> list[Tensor]:
    """Selects the first accepted column of each of `values` (N, ATTEMPTS); the first column where none is accepted."""
    first = accepted.int().argmax(1, keepdim=True)
    return [value.gather(1, first).squeeze(1) for value in values]


def per_channel(value: float | Sequence[float], white_value: float) -> list[float]:
    """Returns a fill value as a list, of one number for all channels or one per channel, scaled to [0, 1]."""
    return [float(v) / white_value for v in (value if isinstance(value, Sequence) else [value])]


def constant_columns(values: list[float], count: int) -> Tensor:
    """Returns (count, len(values)): constants are columns too, so that no call copies anything to the device."""
    return torch.tensor(values, dtype=torch.float64).expand(count, -1)


def as_channels(columns: Tensor, images: Tensor) -> Tensor:
    """Reshapes columns (N, 1 or C) to (N, 1 or C, 1, 1)."""
    if columns.shape[1] not in (1, images.shape[1]):
        raise ValueError(f"{columns.shape[1]} values were given for images of {images.shape[1]} channels.")
    return columns[:, :, None, None]
