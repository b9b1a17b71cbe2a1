"""Training augmentations of a batch on its device, with random parameters of its own for each sample.

Parameters, distributions and order are those of `torchvision.transforms`. With the same drawn parameters each sample equals
torchvision's float functionals: colors within 1e-5; pixels of a warp, but for positions halfway between two input pixels
(5e-6 of all).

Unlike the transforms on PIL images, nothing is rounded to 8 bits between the steps. PIL truncates at each blend, so that
images of experiment C-50 are 1.2 of 255 brighter here; they differ by 1.2 of 255 on average and 3.3 in the 99th percentile
(200 real images, same drawn parameters). In an affine warp, 0.03 % of the pixels are a neighbor's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms

from datamodules.on_device import automatic, color, geometry, rectangles
from datamodules.on_device.draws import BatchedStep, is_zero
from datamodules.transforms import build_transform
from utils.errors import ConfigError

BATCHED: dict[str, type[BatchedStep]] = {
    "RandomHorizontalFlip": geometry.RandomHorizontalFlip,
    "RandomVerticalFlip": geometry.RandomVerticalFlip,
    "RandomAffine": geometry.RandomAffine,
    "RandomRotation": geometry.RandomRotation,
    "RandomPerspective": geometry.RandomPerspective,
    "RandomCrop": rectangles.RandomCrop,
    "CenterCrop": rectangles.CenterCrop,
    "RandomResizedCrop": rectangles.RandomResizedCrop,
    "ColorJitter": color.ColorJitter,
    "RandomGrayscale": color.RandomGrayscale,
    "TrivialAugmentWide": automatic.TrivialAugmentWide,
    "RandAugment": automatic.RandAugment,
    "RandomErasing": rectangles.RandomErasing,
}


def unsupported_augmentations(augmentations: dict[str, dict[str, Any] | None]) -> list[str]:
    """Returns the configured transforms that cannot run in batches, each as "name: reason".

    Args:
        augmentations: Names of `torchvision.transforms` and their parameters, as configured.

    Raises:
        ConfigError: torchvision rejects the parameters; with its own message.
    """
    reasons = []
    for name, parameters in augmentations.items():
        step = BATCHED.get(name)
        with _errors_of(name):
            reason = (
                "it has no batched implementation"
                if step is None
                else step.unsupported_reason(build_transform(name, parameters))
            )
        if reason:
            reasons.append(f"{name}: {reason}")
    return reasons


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turns torchvision's errors about parameters into ConfigErrors that name the transform."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


class BatchedAugmentations:
    """The configured augmentations of batches of uint8 images, followed by normalization.

    Parameters are drawn separately from their use: `draw` returns a row for each sample, on the CPU, for a whole epoch if
    wanted. They are a plain tensor, which can be indexed, pinned and moved.

    A call never synchronizes the host with the device, and its shapes depend on the batch size only, so that it can be
    compiled or captured in a CUDA graph.
    """

    def __init__(
        self,
        image_augmentations: dict[str, dict[str, Any] | None],
        tensor_augmentations: dict[str, dict[str, Any] | None],
        *,
        image_size: tuple[int, int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        """Builds the steps; torchvision's transforms validate and complete the parameters.

        Args:
            image_augmentations: Names and parameters in order, as for PIL images (a fill value of 255 is white).
            tensor_augmentations: Names and parameters in order, as for tensors in [0, 1] (a fill value of 1 is white).
            image_size: Height and width of the given images, pixels.
            mean: Of each channel, for values in [0, 1]; None: no normalization.
            std: Of each channel, for values in [0, 1].

        Raises:
            ConfigError: torchvision rejects the parameters, or a transform cannot run in batches.
        """
        self.input_size = self.output_size = tuple(image_size)
        self.steps: list[BatchedStep] = []
        self.columns: list[int] = []
        for augmentations, white_value in ((image_augmentations, 255.0), (tensor_augmentations, 1.0)):
            if unsupported := unsupported_augmentations(augmentations):
                raise ConfigError(f"cannot run in batches: {'; '.join(unsupported)}")
            for name, parameters in augmentations.items():
                self._append(BATCHED[name], build_transform(name, parameters), white_value)
        if mean is not None:
            self._append(color.Normalize, transforms.Normalize(mean, std), 1.0)

    def _append(self, kind: type[BatchedStep], transform: Any, white_value: float) -> None:
        with _errors_of(type(transform).__name__):
            step = kind(transform, self.output_size, white_value)
            # Draws once, so that an empty range is an error now, not in the first epoch.
            self.columns.append(draw_params(step, torch.zeros(1, 1 + step.num_random, dtype=torch.float64)).shape[1])
        self.steps.append(step)
        self.output_size = step.size

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws the parameters of `count` samples.

        Returns:
            (count, columns), float32, on the CPU. Row i depends on the generator and i only, not on `count`.
        """
        widths = [1 + step.num_random for step in self.steps]
        uniforms = torch.rand(count, sum(widths), generator=generator, dtype=torch.float64)
        params = [
            draw_params(step, numbers) for step, numbers in zip(self.steps, uniforms.split(widths, 1), strict=True)
        ]
        return torch.cat([torch.empty(count, 0), *params], 1).float()

    @torch.no_grad()
    def __call__(self, images: Tensor, params: Tensor) -> Tensor:
        """Augments and normalizes a batch.

        Args:
            images: (N, C, H, W), uint8, one or three channels, on any device.
            params: (N, columns), the rows of `draw`, on the same device.

        Returns:
            (N, C, *self.output_size), float32.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[2:]) != self.input_size or len(images) != len(params):
            raise ValueError(
                f"expected uint8 images (N, C, {self.input_size[0]}, {self.input_size[1]}) and as many rows of "
                f"parameters, not {images.dtype} {tuple(images.shape)} and {len(params)} rows."
            )
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self.augment(images, params)
        # On the CPU one image at a time stays in its cache, and steps that are not applied can be skipped.
        augmented = torch.empty(len(images), images.shape[1], *self.output_size)
        for image, row, place in zip(images.split(1), params.split(1), augmented.split(1), strict=True):
            place.copy_(self.augment(image, row))
        return augmented

    def augment(self, images: Tensor, params: Tensor) -> Tensor:
        """Augments all samples together, without checks."""
        for step, columns in zip(self.steps, params.split(self.columns, 1), strict=True):
            applied, columns = columns[:, :1], columns[:, 1:]
            if is_zero(applied):
                continue
            if images.dtype == torch.uint8 and not step.works_on_uint8:
                images = images / 255
            augmented = step.apply(images, columns)
            everywhere = step.probability >= 1 or is_zero(applied - 1)
            images = augmented if everywhere else torch.where(applied[:, :, None, None] > 0, augmented, images)
        return images / 255 if images.dtype == torch.uint8 else images


def draw_params(step: BatchedStep, uniforms: Tensor) -> Tensor:
    """Maps uniform numbers (N, 1 + step.num_random) to columns: whether the step is applied, then its parameters."""
    applied = (uniforms[:, :1] < step.probability).double()
    return torch.cat([applied, step.params(step.sample(uniforms[:, 1:]), len(uniforms))], 1)
