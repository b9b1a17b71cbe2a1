"""Whole batches by index from the cache, augmented on the device: no workers, no photo at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datamodules.batched_augmentations import BatchedAugmentations
from datamodules.sampling import EpochBatches
from datamodules.sources import CachedPhotos
from utils.randomness import generator


class BatchLoader:
    """Takes the place of a DataLoader: yields images (N, C, H, W), float32, and labels (N,), both on `device`.

    The random draws of a whole epoch are made in one call, a row for each photo: they depend on (seed, epoch, index).

    Args:
        photos: The cache of the split.
        labels: The label of each photo.
        batches: The order.
        augmentations: What is done to a batch, normalisation included.
        device: Where the network is.
        on_device: Whether the whole cache lies there too; else batches are copied from the memory map.
        seed: Start of the random draws.
    """

    def __init__(
        self,
        photos: CachedPhotos,
        labels: Sequence[int],
        batches: EpochBatches,
        augmentations: BatchedAugmentations,
        *,
        device: torch.device,
        on_device: bool,
        seed: int,
    ) -> None:
        self.photos = photos
        self.batch_sampler = batches  # where Lightning looks for the order
        self.augmentations = augmentations
        self.device = device
        self.seed = seed
        self.labels = torch.tensor(labels, device=device)
        self.stored = photos.tensor().to(device) if on_device else None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows: Tensor | None = None
        pinned = self.device.type == "cuda"
        for batch in self.batch_sampler:
            if rows is None:
                epoch = batch[0][0]
                rows = self.augmentations.draw(len(self.photos), generator(self.seed, "rows", epoch)).to(self.device)
            picked = torch.tensor([index for _, index in batch])
            indices = (picked.pin_memory() if pinned else picked).to(self.device, non_blocking=True)
            if self.stored is not None:
                images = self.stored[indices]
            else:
                read = self.photos.batch(picked.numpy())
                images = (read.pin_memory() if pinned else read).to(self.device, non_blocking=True)
            yield self.augmentations(images, rows[indices]), self.labels[indices]
