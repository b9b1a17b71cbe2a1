"""TrivialAugmentWide and RandAugment with operations and magnitudes of its own for each sample.

Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021:
https://arxiv.org/abs/2103.10158
Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019:
https://arxiv.org/abs/1909.13719

The fourteen operations are six computations: a warp, a blend, sharpening, and four curves of the levels. On an accelerator
each runs for the whole batch, and a sample takes the result of the one that it has drawn; on the CPU only that one runs.
Operations that are defined for 8 bits alone (Posterize, Solarize, Equalize) round to them first, as PIL images are.
"""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad
from torchvision import transforms

from datamodules.on_device.color import blend
from datamodules.on_device.draws import BatchedStep, integers, is_zero
from datamodules.on_device.geometry import Warp, inverse_affine_maps

LEVELS, MAX_LEVEL = 256, 255
WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
BLENDS = ("Brightness", "Color", "Contrast")
NUMBERS = 13  # columns of an operation before those of its warp


class OperationWarp(Warp):
    """Shears from the top left corner, translates by whole pixels, and rotates about the center.

    Args:
        names: Of all operations, in the order of "op".
    """

    def __init__(
        self,
        transform: transforms.RandAugment | transforms.TrivialAugmentWide,
        size: tuple[int, int],
        white_value: float,
        names: list[str],
    ) -> None:
        fill = 0 if transform.fill is None else transform.fill
        super().__init__(SimpleNamespace(interpolation=transform.interpolation, fill=fill), size, white_value)
        self.fades &= transform.fill is not None  # as in torchvision
        self.names = names

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        height, width = self.size
        of = {name: torch.where(sampled["op"] == self.names.index(name), sampled["magnitude"], 0) for name in WARPS}
        shear = torch.stack([of["ShearX"], of["ShearY"]], 1)
        corner = torch.tensor([-width / 2, -height / 2], dtype=torch.float64)
        center = torch.where(shear.any(1, keepdim=True), corner, 0)
        translate = torch.stack([of["TranslateX"], of["TranslateY"]], 1).trunc()
        # torchvision rotates counter-clockwise here.
        return inverse_affine_maps(
            center, -of["Rotate"], translate, torch.ones_like(of["Rotate"]), shear.atan().rad2deg()
        )


class RandAugment(BatchedStep):
    """`num_ops` operations in a row, each drawn uniformly, all of one magnitude of either sign."""

    def __init__(self, transform: transforms.RandAugment, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        if white_value == 1:
            raise ValueError("works on images: move it to image_augmentations.")
        space = self.space()
        self.names = list(space)
        self.signed = torch.tensor([signed for _, signed in space.values()])
        self.magnitudes = torch.stack(
            [values.double().expand(transform.num_magnitude_bins) for values, _ in space.values()]
        )
        self.num_random = 3 * self.num_ops
        self.warp = OperationWarp(transform, size, white_value, self.names)

    @staticmethod
    def unsupported_reason(transform: transforms.RandAugment | transforms.TrivialAugmentWide) -> str | None:
        return Warp.unsupported_reason(transform)

    @property
    def num_ops(self) -> int:
        return self.transform.num_ops

    def space(self) -> dict[str, tuple[Tensor, bool]]:
        """Returns torchvision's magnitudes of each operation, and whether they have either sign."""
        return self.transform._augmentation_space(self.transform.num_magnitude_bins, self.size)

    def bins(self, uniforms: Tensor) -> Tensor:
        """Returns which of the magnitudes each operation has."""
        return torch.full_like(uniforms, self.transform.magnitude)

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "op", an index of `names`, and "magnitude", each (N, num_ops)."""
        op = integers(uniforms[:, 0::3], len(self.names)).long()
        magnitude = self.magnitudes[op, self.bins(uniforms[:, 1::3]).long()]
        negative = self.signed[op] & (uniforms[:, 2::3] < 0.5)
        return {"op": op, "magnitude": torch.where(negative, -magnitude, magnitude)}

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        return torch.cat(
            [
                self._params(op, magnitude, count)
                for op, magnitude in zip(sampled["op"].unbind(1), sampled["magnitude"].unbind(1), strict=True)
            ],
            1,
        )

    def _params(self, op: Tensor, magnitude: Tensor, count: int) -> Tensor:
        """Returns the columns of one operation: for each computation whether it is drawn, and its numbers."""

        def drawn(*names: str) -> Tensor:
            return torch.isin(op, torch.tensor([self.names.index(name) for name in names])).double()

        factor = 1 + magnitude
        columns = [
            *(drawn(*BLENDS), factor, (1 - factor) * drawn("Color"), (1 - factor) * drawn("Contrast")),
            *(drawn("Sharpness"), factor),
            *(drawn("Posterize"), 2 ** (8 - magnitude.clamp(0, 8).trunc())),  # the distance between two levels
            *(drawn("Solarize"), (magnitude.ceil() - 0.5) / MAX_LEVEL),  # between two levels, wherever it rounds
            drawn("AutoContrast"),
            drawn("Equalize"),
        ]
        warp = self.warp.params({"op": op, "magnitude": magnitude}, count)
        return torch.cat([torch.stack(columns, 1), drawn(*WARPS)[:, None], warp], 1)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        for columns in params.chunk(self.num_ops, dim=1):
            images = self._apply(images, columns)
        return images

    def _apply(self, images: Tensor, params: Tensor) -> Tensor:
        numbers = params[:, :NUMBERS, None, None].split(1, dim=1)
        is_blend, factor, of_gray, of_mean, is_sharpness, sharpness, is_posterize, step = numbers[:8]
        is_solarize, threshold, is_autocontrast, is_equalize, is_warp = numbers[8:]
        for is_drawn, compute in (
            (is_blend, lambda each: blend(each, factor, of_gray, of_mean)),
            (is_sharpness, lambda each: sharpen(each, sharpness)),
            (is_posterize, lambda each: (to_levels(each) / step).floor() * step / MAX_LEVEL),
            (is_solarize, lambda each: torch.where(each >= threshold, 1 - each, each)),
            (is_autocontrast, stretch),
            (is_equalize, equalize),
            (is_warp, lambda each: self.warp.apply(each, params[:, NUMBERS:])),
        ):
            if not is_zero(is_drawn):
                images = torch.where(is_drawn > 0, compute(images), images)
        return images


class TrivialAugmentWide(RandAugment):
    """One operation, drawn uniformly, of a magnitude drawn uniformly."""

    num_ops = 1

    def space(self) -> dict[str, tuple[Tensor, bool]]:
        return self.transform._augmentation_space(self.transform.num_magnitude_bins)

    def bins(self, uniforms: Tensor) -> Tensor:
        return integers(uniforms, self.transform.num_magnitude_bins)


def to_levels(images: Tensor) -> Tensor:
    """Rounds images in [0, 1] to whole levels 0 … 255."""
    return (images * MAX_LEVEL).round()


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Blends images with themselves blurred by 3 × 3 pixels, except their outermost pixels, as PIL does."""
    if min(images.shape[2:]) <= 2:
        return images
    blurred = images.clone()
    # Mean of nine pixels, the central one five times: not a convolution, which would lose digits under autocast.
    blurred[:, :, 1:-1, 1:-1] = (9 * avg_pool2d(images, 3, 1) + 4 * images[:, :, 1:-1, 1:-1]) / 13
    return torch.addcmul((1 - factor) * blurred, factor, images).clamp_(0, 1)


def stretch(images: Tensor) -> Tensor:
    """Scales each channel to [0, 1]; a channel of one level stays as it is."""
    lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    is_flat = highest - lowest < 0.5 / MAX_LEVEL
    lowest = torch.where(is_flat, 0, lowest)
    return ((images - lowest) / torch.where(is_flat, 1, highest - lowest)).clamp_(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Maps the levels of each channel so that all are equally frequent, in PIL's whole numbers."""
    count, channels, height, width = images.shape
    levels = to_levels(images).long().view(count * channels, -1)
    rows = LEVELS * torch.arange(len(levels), device=images.device)[:, None]
    histogram = torch.zeros(len(levels) * LEVELS, dtype=torch.int64, device=images.device)
    histogram = histogram.scatter_add_(0, (levels + rows).flatten(), torch.ones_like(levels).flatten()).view(-1, LEVELS)
    most = histogram.gather(1, levels.amax(1, keepdim=True))  # pixels of the highest level
    step = (height * width - most) // MAX_LEVEL
    below = pad(histogram.cumsum(1), (1, 0))[:, :-1]
    mapped = ((below + step // 2) // step.clamp_min(1)).clamp(0, MAX_LEVEL)
    mapped[:, 0] = 0
    equalized = mapped.gather(1, levels).view(images.shape) / MAX_LEVEL
    return torch.where(step.view(count, channels, 1, 1) > 0, equalized, images)
