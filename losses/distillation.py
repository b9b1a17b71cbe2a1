"""The predictions of teachers as targets.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015: https://arxiv.org/abs/1503.02531
Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022, on the same view of the image for
teacher and student: https://arxiv.org/abs/2106.05237
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import rgb_to_grayscale


@dataclass(frozen=True)
class View:
    """What a model gets of an image in [0, 1].

    Attributes:
        size: Height and width.
        channels: 3, or 1 of gray.
        mean, std: (channels, 1, 1); of the normalization, 0 and 1 without one.
    """

    size: tuple[int, int]
    channels: int
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "View":
        return replace(self, mean=self.mean.to(device, dtype), std=self.std.to(device, dtype))


@dataclass(frozen=True)
class Teacher:
    """A trained model.

    Attributes:
        model: Turns images (N, C, H, W) into logits.
        view: What it gets of an image.
        classes: Index of each of the student's classes among its own, (classes,).
    """

    model: nn.Module
    view: View
    classes: Tensor


class Distillation:
    """temperature² · KL(teachers ‖ student) of each image, both softened by the temperature.

    Teachers see the student's view of the image: as it is augmented and mixed, resized and normalized as they expect it. Of
    several the probabilities are averaged. This is no module: teachers are neither trained nor part of a checkpoint.

    Args:
        teachers: At least one.
        view: The student's.
        temperature: Above 0.
        weight: Of this term in the loss, above 0 … 1; the task's has the rest.
    """

    def __init__(self, teachers: Sequence[Teacher], view: View, *, temperature: float, weight: float) -> None:
        self.teachers = teachers
        self.view = view
        self.temperature = temperature
        self.weight = weight
        for teacher in teachers:
            teacher.model.eval().requires_grad_(False)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.view = self.view.to(device, dtype)
        self.teachers = [
            Teacher(each.model.to(device, dtype), each.view.to(device, dtype), each.classes.to(device))
            for each in self.teachers
        ]

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """Returns the divergence of each image, (N,).

        Args:
            images: What the student got, (N, C, H, W).
            logits: The student's, (N, classes).
        """
        student = functional.log_softmax(_precise(logits) / self.temperature, dim=1)
        divergence = functional.kl_div(student, self.probabilities(images).to(student.dtype), reduction="none")
        return self.temperature**2 * divergence.sum(dim=1)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Returns the mean of the teachers' softened probabilities of the student's classes, (N, classes)."""
        each = [self._logits(teacher, images)[:, teacher.classes] / self.temperature for teacher in self.teachers]
        return torch.stack([logits.softmax(dim=1) for logits in each]).mean(dim=0)

    def _logits(self, teacher: Teacher, images: Tensor) -> Tensor:
        mine, theirs = self.view, teacher.view
        images = images.to(mine.mean.dtype) * mine.std + mine.mean
        if theirs.channels < mine.channels:
            images = rgb_to_grayscale(images)
        if theirs.size != tuple(images.shape[2:]):
            images = functional.interpolate(images, theirs.size, mode="bilinear", antialias=True)
        images = images.expand(-1, theirs.channels, -1, -1)  # a color model sees a gray image in gray
        return _precise(teacher.model((images - theirs.mean) / theirs.std))


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
