"""The order of the images. It depends on (seed, epoch) alone, so a resumed run sees what an undisturbed run would."""

from collections.abc import Iterator

import torch

from utils.errors import DataError
from utils.seeding import generator

Item = tuple[int, int]  # (epoch, index of the image): all that an image's random draws depend on


class EpochBatchSampler:
    """Yields the batches of an epoch as lists of (epoch, index).

    Each process takes an equal share of every batch of `batch_size` × `world_size` images. The last partial batch is kept;
    if it is too small for every process, its images join the batch before it. Too small means fewer than two images a
    process in training, where batch norm needs two, and fewer than one in validation.

    Args:
        count: Number of images.
        batch_size: Images a step, for each process.
        shuffle: Whether this is for training; then each epoch has its own order.
        seed: Seed of the order.
        rank, world_size: Index of this process and number of processes.

    Raises:
        DataError: There are too few images for so many processes.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count = count
        self.batch_size = batch_size * world_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
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
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=generator(self.seed, "order", self.epoch))
        indices = order.tolist()
        first, self.first_batch = self.first_batch, 0
        for start, stop in self._bounds()[first:]:
            yield [(self.epoch, index) for index in indices[start:stop][self.rank :: self.world_size]]

    def _bounds(self) -> list[tuple[int, int]]:
        starts = list(range(0, self.count, self.batch_size))
        if len(starts) > 1 and self.count - starts[-1] < self.min_images:
            starts.pop()
        return list(zip(starts, [*starts[1:], self.count], strict=True))
