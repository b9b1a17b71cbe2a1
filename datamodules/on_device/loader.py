"""Whole batches by index from the cache, augmented on the device: no processes, no photo at a time."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from datamodules.cache import ImageCache
from datamodules.on_device.augmentations import BatchedAugmentations
from datamodules.sampler import EpochBatchSampler
from utils.errors import RunError
from utils.seeding import generator

PREFETCH = 3  # batches that are read while the device is at work on those before them, each by a thread


class DeviceLoader:
    """Takes the place of a DataLoader: yields images (N, C, H, W), float32, and labels (N,), both on `device`.

    The random draws of a whole epoch are made in one call, a row for each photo: they depend on (seed, epoch, index).

    Args:
        photos: The cache of the split.
        labels: The label of each photo.
        batches: The order.
        augmentations: What is done to a batch, normalisation included.
        device: Where the network is.
        on_device: Whether the whole cache lies there too; else threads read batches ahead from the file.
        seed: Start of the random draws.
        compiled: Whether batches of full size are augmented by fused kernels, compiled at the first of them.
    """

    def __init__(
        self,
        photos: ImageCache,
        labels: Sequence[int],
        batches: EpochBatchSampler,
        augmentations: BatchedAugmentations,
        *,
        device: torch.device,
        on_device: bool,
        seed: int,
        compiled: bool = False,
    ) -> None:
        self.photos = photos
        self.batch_sampler = batches  # where Lightning looks for the order
        self.augmentations = augmentations
        self.device = device
        self.seed = seed
        # Not with CUDA graphs, whatever the network has: a batch must outlive the call that makes the next one.
        self.full = torch.compile(augmentations, dynamic=False) if compiled else augmentations
        self.labels = torch.tensor(labels, device=device)
        self.stored = self._copied() if on_device else None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = list(self.batch_sampler)
        if not batches:
            return
        epoch = batches[0][0][0]
        # Order and random rows go to the device once an epoch; nothing here waits for it.
        order = torch.tensor([index for batch in batches for _, index in batch])
        rows = self._sent(self.augmentations.draw(len(self.photos), generator(self.seed, "rows", epoch)))
        sizes = [len(batch) for batch in batches]
        full_size = self.batch_sampler.batch_size // self.batch_sampler.world_size
        places = self._sent(order).split(sizes)
        stored = self._read(order.split(sizes)) if self.stored is None else (self.stored[indices] for indices in places)
        for indices, images in zip(places, stored, strict=True):
            augment = self.full if len(indices) == full_size else self.augmentations
            yield augment(images, rows[indices]), self.labels[indices]

    def _read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the photos of each batch, on the device; where the file is not in memory, it waits for the disk."""
        pinned = self.device.type == "cuda"  # the device reads such memory by itself, while the host goes on

        def start(indices: Tensor) -> Future[Tensor]:
            # Pinned memory is made here: another thread would make it for the first card, whichever this one is.
            room = torch.empty(len(indices), *self.photos.shape[1:], dtype=torch.uint8, pin_memory=pinned)
            return pool.submit(self.photos.batch, indices.numpy(), room)

        with ThreadPoolExecutor(PREFETCH) as pool:
            reading = deque(start(indices) for indices in batches[:PREFETCH])
            for number in range(len(batches)):
                images = reading.popleft().result()
                if number + PREFETCH < len(batches):
                    reading.append(start(batches[number + PREFETCH]))
                yield images.to(self.device, non_blocking=True)

    def _copied(self) -> Tensor:
        try:
            return self.photos.to(self.device)
        except torch.OutOfMemoryError as error:
            change = "cache_on_device=False"
            raise RunError(
                f"the device's memory is too small for the cache of {len(self.photos):,} photos, "
                f"{self.photos.size / 1e9:.3g} GB; --set {change}, or free the device of other programs",
                change=change,
            ) from error

    def _sent(self, values: Tensor) -> Tensor:
        """Copies to the device, from memory that the device can read by itself."""
        return (values.pin_memory() if self.device.type == "cuda" else values).to(self.device, non_blocking=True)
