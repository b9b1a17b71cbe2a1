"""The order of photos: it comes from (seed, epoch) alone, so that a resumed run sees what an undisturbed one would."""

from collections.abc import Iterator

import torch

from utils.seeding import generator

Item = tuple[int, int]  # epoch, index of the photo: all that a photo's random draws depend on


class EpochBatchSampler:
    """The batches of each epoch, as lists of (epoch, index).

    The last partial batch is kept. If it would hold one image, that image joins the batch before it: batch norm cannot
    train on one. With several processes each takes its share of every batch of `batch_size` × `world_size` images; the last
    batch has one for each of them at least.

    Args:
        count: Number of photos.
        batch_size: Photos a step, for each process.
        shuffle: Whether each epoch has an order of its own.
        seed: Start of the order.
        rank, world_size: Which of how many processes this is.
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
        self.epoch = 0
        self.first_batch = 0  # above 0 where an epoch goes on in its middle
        self.sampler = self  # where Lightning looks for set_epoch

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
        # Too few images for every process, or one alone for batch norm: they join the batch before.
        least = max(2 if self.shuffle else 1, self.world_size)
        if len(starts) > 1 and self.count - starts[-1] < least:
            starts.pop()
        return list(zip(starts, [*starts[1:], self.count], strict=True))
