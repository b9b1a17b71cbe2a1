"""Mixes pairs of images of a batch, and their labels, by torchvision.

mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018: https://arxiv.org/abs/1710.09412
CutMix: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019:
https://arxiv.org/abs/1905.04899
"""

from torch import Tensor
from torchvision.transforms import v2

from utils.errors import ConfigError
from utils.seeding import seeded

MIN_CLASSES = 2


class Mixing:
    """Mixes each image of a batch with the one before it, by mixup or CutMix, in one share for the whole batch.

    The random numbers depend on the seed and the step alone: every process draws the same share for its part of a batch.

    Args:
        num_classes: Number of classes.
        mixup_alpha, cutmix_alpha: The share is drawn from Beta(alpha, alpha); None for one of them: the other mixes all.
        probability: Of a batch being mixed.
        off_epochs: Last epochs of a training in which no batch is mixed.
        seed: Seed of the random numbers.

    Raises:
        ConfigError: There is only one class.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup_alpha: float | None,
        cutmix_alpha: float | None,
        probability: float = 1.0,
        off_epochs: int = 0,
        seed: int = 0,
    ) -> None:
        if num_classes < MIN_CLASSES:
            raise ConfigError(
                f"mixup_alpha and cutmix_alpha mix images of several classes; the data set has {num_classes}: set both to null"
            )
        kinds = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
            if alpha is not None
        ]
        self.transform = v2.RandomApply([v2.RandomChoice(kinds)], p=probability)
        self.off_epochs = off_epochs
        self.seed = seed

    def is_on(self, epoch: int, num_epochs: int) -> bool:
        """Returns whether batches of an epoch, from 0, of a training of `num_epochs` are mixed."""
        return epoch < num_epochs - self.off_epochs

    def __call__(self, images: Tensor, labels: Tensor, *step: int) -> tuple[Tensor, Tensor]:
        """Mixes a batch on its device.

        Args:
            images: (N, C, H, W), floating point.
            labels: (N,).
            step: What identifies the batch within the training.

        Returns:
            The mixed images and probabilities (N, classes); what was given if this batch is not to be mixed.
        """
        with seeded(self.seed, "mix", *step):
            return self.transform(images, labels)
