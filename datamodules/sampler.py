"""The order of the images. It depends on (seed, epoch) alone, so a resumed run sees what an undisturbed run would."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from utils.errors import DataError
from utils.seeding import generator

# (epoch, draw): all that an image's random draws depend on. The image is draw % count, its earlier draws in the epoch are
# draw // count, which is 0 unless classes are balanced.
Item = tuple[int, int]


class EpochBatchSampler:
    """Yields the batches of an epoch as lists of (epoch, draw).

    Each process takes an equal share of every batch of `batch_size` × `world_size` images. The last partial batch is kept;
    if it is too small for every process, its images join the batch before it. Too small means fewer than two images a
    process in training, where batch norm needs two, and fewer than one in validation.

    Args:
        count: Number of images.
        batch_size: Images a step, for each process.
        shuffle: Whether this is for training; then each epoch has its own order.
        seed: Seed of the order.
        labels: The label of each image, to balance the classes: each epoch draws `count` images with replacement, with equal
            chances for all classes and for all images of a class. None: each image once.
        rank, world_size: Index of this process and number of processes.

    Raises:
        DataError: There are too few images for so many processes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.count = count
        self.batch_size = batch_size * world_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.weights = None if labels is None else 1 / torch.bincount(torch.tensor(labels))[labels].double()
        self.min_images = (2 if shuffle else 1) * world_size  # in a batch
        self.epoch = 0
        self.first_batch = 0  # above 0 when an epoch is resumed in its middle
        self.sampler = self  # where Lightning looks for set_epoch
        if count < self.min_images:
            raise DataError(
                f"{count} {'training' if shuffle else 'validation'} images are too few for {world_size} "
                f"process{'es' if world_size > 1 else ''}; expected at least {self.min_images}"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[list[Item]]:
        indices = self._order()
        first, self.first_batch = self.first_batch, 0
        for start, stop in self._bounds()[first:]:
            yield [(self.epoch, index) for index in indices[start:stop][self.rank :: self.world_size]]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.count))
        numbers = generator(self.seed, "order", self.epoch)
        if self.weights is None:
            return torch.randperm(self.count, generator=numbers).tolist()
        # Not torch.multinomial, which takes at most 2²⁴ images.
        bounds = self.weights.cumsum(0)
        drawn = torch.searchsorted(bounds, torch.rand(self.count, generator=numbers, dtype=torch.float64) * bounds[-1])
        earlier: Counter[int] = Counter()
        draws = []
        for index in drawn.clamp(max=self.count - 1).tolist():
            draws.append(index + self.count * earlier[index])
            earlier[index] += 1
        return draws

    def _bounds(self) -> list[tuple[int, int]]:
        starts = list(range(0, self.count, self.batch_size))
        if len(starts) > 1 and self.count - starts[-1] < self.min_images:
            starts.pop()
        return list(zip(starts, [*starts[1:], self.count], strict=True))
