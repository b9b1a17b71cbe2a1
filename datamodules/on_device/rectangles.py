"""RandomCrop, RandomResizedCrop and RandomErasing with a rectangle of its own for each sample; CenterCrop."""

import math

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from datamodules.on_device.draws import (
    ATTEMPTS,
    BatchedStep,
    as_channels,
    constant_columns,
    first_accepted,
    integers,
    per_channel,
    tries,
)


class RandomCrop(BatchedStep):
    """Cuts out a rectangle of a given size at a random place."""

    num_random = 2
    works_on_uint8 = True

    def __init__(
        self, transform: transforms.RandomCrop | transforms.CenterCrop, size: tuple[int, int], white_value: float
    ) -> None:
        super().__init__(transform, size, white_value)
        self.size = tuple(transform.size)
        if self.size[0] > size[0] or self.size[1] > size[1]:
            raise ValueError(f"the size {self.size} is larger than the images, {tuple(size)}.")

    @staticmethod
    def unsupported_reason(transform: transforms.RandomCrop) -> str | None:
        return "padding" if transform.padding or transform.pad_if_needed else None

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "top" and "left", each (N), pixels."""
        (height, width), (out_height, out_width) = self.input_size, self.size
        return {
            "top": integers(uniforms[:, 0], height - out_height + 1),
            "left": integers(uniforms[:, 1], width - out_width + 1),
        }

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        top, left = params.long().split(1, dim=1)
        rows, columns = (torch.arange(side, device=images.device) for side in self.size)
        numbers = torch.arange(len(images), device=images.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
        return images[numbers, channels, (top + rows)[:, None, :, None], (left + columns)[:, None, None, :]]


class CenterCrop(RandomCrop):
    """Cuts out the central rectangle of a given size."""

    num_random = 0

    @staticmethod
    def unsupported_reason(transform: transforms.CenterCrop) -> str | None:
        return None

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        return {}

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        top, left = (round((side - out) / 2) for side, out in zip(self.input_size, self.size, strict=True))
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]


class RandomResizedCrop(BatchedStep):
    """Crops a rectangle of random area and aspect ratio, and resizes it with antialiasing."""

    num_random = 2 * ATTEMPTS + 2

    def __init__(self, transform: transforms.RandomResizedCrop, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        self.size = tuple(transform.size)

    @staticmethod
    def unsupported_reason(transform: transforms.RandomResizedCrop) -> str | None:
        interpolation = InterpolationMode(transform.interpolation)
        if interpolation != InterpolationMode.BILINEAR:
            return f"interpolation {interpolation.value}; batched is bilinear"
        return None if transform.antialias else "antialias is off"

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "top", "left", "height" and "width", each (N), pixels."""
        height, width = self.input_size
        scale, ratio = self.transform.scale, self.transform.ratio
        widths, heights = tries(uniforms, height * width, scale, ratio)
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        found, crop_width, crop_height = first_accepted(fits, fits, widths, heights)
        # Where no attempt fits: the largest central crop within the limits of the aspect ratio.
        central_width = min(width, round(height * max(ratio)))
        central_height = min(height, round(width / min(ratio)))
        crop_width = torch.where(found, crop_width, central_width)
        crop_height = torch.where(found, crop_height, central_height)
        top = integers(uniforms[:, -2], height - crop_height + 1)
        left = integers(uniforms[:, -1], width - crop_width + 1)
        return {
            "top": torch.where(found, top, (height - central_height) // 2),
            "left": torch.where(found, left, (width - central_width) // 2),
            "height": crop_height,
            "width": crop_width,
        }

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        top, left, height, width = params.split(1, dim=1)
        images = resize_along(images, 2, top, height, self.size[0])
        return resize_along(images, 3, left, width, self.size[1])


def resize_along(images: Tensor, dimension: int, start: Tensor, length: Tensor, out_length: int) -> Tensor:
    """Resizes `length` pixels from `start` along one dimension, with torch's antialiased bilinear weights.

    An output pixel is the mean of the input pixels under a triangle that extends one output pixel to both sides, at
    least one input pixel. The number of taps is that of resizing the whole image, the most that a sample can need.

    Args:
        images: (N, C, H, W).
        dimension: 2 or 3.
        start: (N, 1), first pixel.
        length: (N, 1), pixels.
        out_length: Pixels of the result.
    """
    scale = length / out_length
    reach = scale.clamp_min(1)
    center = scale * (torch.arange(out_length, device=images.device) + 0.5)  # (N, out_length)
    first = (center - reach + 0.5).floor().clamp_min(0)
    out_shape = [*images.shape]
    out_shape[dimension] = out_length
    total, weights = 0.0, 0.0
    for tap in range(math.ceil(2 * max(1, images.shape[dimension] / out_length))):
        position = first + tap
        weight = (1 - ((position - center + 0.5) / reach).abs()).clamp_min(0) * (position < length)
        index = (start + torch.minimum(position, length - 1)).long()
        if dimension == 2:
            weight, index = weight[:, None, :, None], index[:, None, :, None]
        else:
            weight, index = weight[:, None, None, :], index[:, None, None, :]
        total = total + weight * images.gather(dimension, index.expand(out_shape))
        weights = weights + weight
    return total / weights


class RandomErasing(BatchedStep):
    """Overwrites a rectangle with a value, or with noise of mean 0 and standard deviation 1.

    The seed of the noise is one of the parameters, so that noise does not depend on the device or the batch.
    """

    num_random = 2 * ATTEMPTS + 3

    def __init__(self, transform: transforms.RandomErasing, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        if white_value != 1:
            raise ValueError("works on tensors: move it to tensor_augmentations.")
        self.value = [] if transform.value == "random" else per_channel(transform.value, white_value)

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "top", "left", "height", "width", each (N), pixels (0 where no attempt fits), and "seed" (N), an integer."""
        height, width = self.size
        heights, widths = tries(uniforms, height * width, self.transform.scale, self.transform.ratio)
        fits = (heights < height) & (widths < width)
        found, erased_height, erased_width = first_accepted(fits, fits, heights, widths)
        return {
            "top": integers(uniforms[:, -3], height - erased_height + 1),
            "left": integers(uniforms[:, -2], width - erased_width + 1),
            "height": erased_height * found,
            "width": erased_width * found,
            "seed": integers(uniforms[:, -1], 2**24),
        }

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        return torch.cat([super().params(sampled, count), constant_columns(self.value, count)], 1)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        top, left, height, width, seed = params[:, :5, None, None].split(1, dim=1)
        y = torch.arange(self.size[0], device=images.device).view(1, 1, -1, 1)
        x = torch.arange(self.size[1], device=images.device).view(1, 1, 1, -1)
        inside = ((y >= top) & (y < top + height)).to(images.dtype) * ((x >= left) & (x < left + width))
        value = as_channels(params[:, 5:], images) if self.value else normal_noise(seed, images.shape[1:])
        return images.lerp(value, inside)


def normal_noise(seed: Tensor, shape: torch.Size) -> Tensor:
    """Returns standard normal numbers (N, *shape) that depend on `seed` (N, 1, 1, 1) only.

    A counter is hashed by the finalizer of MurmurHash3 (32 bits), xored with the seed, and hashed again.
    """
    bits = torch.arange(math.prod(shape), device=seed.device).view(1, *shape)
    bits = _mix(_mix(bits) ^ seed.long())
    centered = ((bits >> 8) * 2 + 1 - 2**24) / 2**24  # odd multiples of 2⁻²⁴: exact, never −1 or 1
    return torch.erfinv(centered) * math.sqrt(2)


def _mix(bits: Tensor) -> Tensor:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    return bits ^ (bits >> 16)
