"""ColorJitter, RandomGrayscale and Normalize with factors and an order of its own for each sample.

The formulas are those of torchvision's float functionals. Brightness, contrast and saturation are one operation: a
blend with black, with the mean gray, or with the gray image, clamped to [0, 1]. Hue is computed without branching on
the six sectors of the color wheel: with `higher` and `lower` the larger and the smaller of g and b, and the chroma
c = max − min, the distance of the hue from red is 2 − ((r − lower) + max(r − higher, 0)) / c sixths of a turn, towards
green or blue. A channel whose hue is d sixths away from that of the pixel has the value min + c · clamp(2 − d, 0, 1).
"""

from itertools import permutations

import torch
from torch import Tensor
from torchvision import transforms

from datamodules.on_device.draws import BatchedStep, as_channels, constant_columns, is_zero, uniform

GRAY_OF_RED, GRAY_OF_GREEN, GRAY_OF_BLUE = 0.2989, 0.587, 0.114  # as in torchvision


def to_gray(images: Tensor) -> Tensor:
    """Converts (N, 1 or 3, H, W) to (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY_OF_RED).add_(green, alpha=GRAY_OF_GREEN).add_(blue, alpha=GRAY_OF_BLUE)


def blend(images: Tensor, factor: Tensor, of_gray: Tensor, of_mean: Tensor) -> Tensor:
    """Returns clamp(factor · image + of_gray · gray + of_mean · mean gray, 0, 1); all three weights (N, 1, 1, 1)."""
    if is_zero(of_gray) and is_zero(of_mean):
        return images if is_zero(factor - 1) else (images * factor).clamp_(0, 1)
    gray = to_gray(images)
    reference = (gray * of_gray).add_(of_mean * gray.mean((1, 2, 3), keepdim=True))
    return torch.addcmul(reference, factor, images).clamp_(0, 1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue by `turns` (N, 1, 1, 1), each in [−0.5, 0.5]; gray images are returned as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    higher, lower = torch.maximum(green, blue), torch.minimum(green, blue)
    lowest = torch.minimum(red, lower)
    chroma = torch.maximum(red, higher).sub_(lowest)
    # Gray pixels have no hue: any finite value will do, as it is multiplied by a chroma of 0.
    distance = (red - lower).add_((red - higher).relu_()).div_(chroma.clamp_min(1e-12)).sub_(2)
    hue = distance.copysign_(green - blue).mul_(1 / 6).add_(turns)
    # 2.5: two turns keep the argument of frac() positive, half a turn centers the distance around the wheel.
    channel_hues = 2.5 - torch.arange(3, device=images.device).view(1, 3, 1, 1) / 3
    away = (hue + channel_hues).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)
    return torch.addcmul(lowest.add_(chroma, alpha=2), chroma, away, value=-6)


class ColorJitter(BatchedStep):
    """Brightness, contrast, saturation and hue in a random order for each sample.

    Hue is the expensive step: it is computed once for the batch. Each sample's other adjustments take slots before or
    after it; an unused slot is the identity.
    """

    def __init__(self, transform: transforms.ColorJitter, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        ranges = {name: getattr(transform, name) for name in ("brightness", "contrast", "saturation", "hue")}
        self.ranges = {name: limits for name, limits in ranges.items() if limits is not None}
        # torchvision shuffles all four; without those not configured, the rest is still shuffled uniformly.
        self.orders = torch.tensor(list(permutations(range(len(self.ranges)))))
        self.num_random = 1 + len(self.ranges)
        self.blends = [name for name in self.ranges if name != "hue"]
        self.has_hue = "hue" in self.ranges

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws the factor of each configured adjustment, and "order" (N, adjustments): their indices, first to last."""
        factors = {
            name: uniform(uniforms[:, 1 + index], *limits) for index, (name, limits) in enumerate(self.ranges.items())
        }
        return {**factors, "order": self.orders[(uniforms[:, 0] * len(self.orders)).long()]}

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        places = dict(zip(self.ranges, sampled["order"].argsort(1).unbind(1), strict=True))
        slots = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(
            count, len(self.blends) * (1 + self.has_hue), 1
        )
        for name in self.blends:
            factor = sampled[name]
            of_gray = 1 - factor if name == "saturation" else torch.zeros_like(factor)
            of_mean = 1 - factor if name == "contrast" else torch.zeros_like(factor)
            slot = places[name]
            if self.has_hue:
                slot = slot + (len(self.blends) - 1) * (slot > places["hue"])
            slots[torch.arange(count), slot] = torch.stack([factor, of_gray, of_mean], 1)
        return torch.cat([slots.flatten(1), *([sampled["hue"][:, None]] if self.has_hue else [])], 1)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        weights = params[:, :, None, None]
        for slot in range(len(self.blends) * (1 + self.has_hue)):
            if self.has_hue and slot == len(self.blends):
                images = shift_hue(images, weights[:, -1:])
            images = blend(images, *weights[:, 3 * slot : 3 * slot + 3].split(1, dim=1))
        return images if self.blends or not self.has_hue else shift_hue(images, weights[:, -1:])


class RandomGrayscale(BatchedStep):
    """Replaces all channels by the gray image."""

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        return to_gray(images).expand_as(images)


class Normalize(BatchedStep):
    """Normalization by the mean and standard deviation of each channel, always the last step."""

    def __init__(self, transform: transforms.Normalize, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        transform(torch.zeros(len(transform.mean), 1, 1))  # torchvision validates the values at their first use
        self.constants = [*transform.mean, *transform.std]

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        return constant_columns(self.constants, count)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        mean, std = params.chunk(2, dim=1)
        return (images - as_channels(mean, images)).div_(as_channels(std, images))
