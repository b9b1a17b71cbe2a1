"""Batches by index from the cache, augmented on the device: without worker processes or per-image work."""

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

PREFETCH = 3  # batches read ahead, each by a thread


def epoch_params(augmentations: BatchedAugmentations, count: int, seed: int, epoch: int, *, repeats: int) -> Tensor:
    """Returns the parameters of each draw of an epoch: of `count` images, and again for their later draws."""
    return torch.cat(
        [
            augmentations.draw(count, generator(seed, "rows", epoch, *([repeat] if repeat else [])))
            for repeat in range(repeats)
        ]
    )


class DeviceLoader:
    """Takes the place of a DataLoader: yields images (N, C, H, W), float32, and labels (N,), both on `device`.

    The parameters of an epoch are drawn in one call, a row for each image: they depend on (seed, epoch, draw).

    Args:
        images: The cache of the split.
        labels: The label of each image.
        batches: The indices of each batch.
        augmentations: Of a batch, normalization included.
        device: The model's.
        on_device: Whether to hold the whole cache in the device's memory; else threads read batches ahead from the file.
        seed: Of the random parameters.
        compiled: Whether to augment batches of full size by fused kernels, compiled at the first of them.
    """

    def __init__(
        self,
        images: ImageCache,
        labels: Sequence[int],
        batches: EpochBatchSampler,
        augmentations: BatchedAugmentations,
        *,
        device: torch.device,
        on_device: bool,
        seed: int,
        compiled: bool = False,
    ) -> None:
        self.images = images
        self.batch_sampler = batches  # Lightning calls its set_epoch
        self.augmentations = augmentations
        self.device = device
        self.seed = seed
        # Without CUDA graphs, even where the model has them: a batch must outlive the call that makes the next one.
        self.full = torch.compile(augmentations, dynamic=False) if compiled else augmentations
        self.labels = torch.tensor(labels, device=device)
        self.stored = self._copy_cache() if on_device else None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = list(self.batch_sampler)
        if not batches:
            return
        epoch = batches[0][0][0]
        # Order and parameters are sent to the device once an epoch; nothing here waits for it.
        draws = torch.tensor([draw for batch in batches for _, draw in batch])
        count = len(self.images)
        rows = epoch_params(self.augmentations, count, self.seed, epoch, repeats=int(draws.max()) // count + 1)
        params, draws_there = self._send(rows), self._send(draws)
        sizes = [len(batch) for batch in batches]
        full_size = self.batch_sampler.batch_size // self.batch_sampler.world_size
        places = (draws_there % count).split(sizes)
        stored = (
            self._read((draws % count).split(sizes))
            if self.stored is None
            else (self.stored[indices] for indices in places)
        )
        for indices, numbers, images in zip(places, draws_there.split(sizes), stored, strict=True):
            augment = self.full if len(indices) == full_size else self.augmentations
            yield augment(images, params[numbers]), self.labels[indices]

    def _read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each batch on the device, read ahead from the file."""
        pinned = self.device.type == "cuda"  # for asynchronous copies

        def start(indices: Tensor) -> Future[Tensor]:
            # Pinned here: in another thread the current device would be the first, not this one.
            buffer = torch.empty(len(indices), *self.images.shape[1:], dtype=torch.uint8, pin_memory=pinned)
            return pool.submit(self.images.batch, indices.numpy(), buffer)

        with ThreadPoolExecutor(PREFETCH) as pool:
            reading = deque(start(indices) for indices in batches[:PREFETCH])
            for number in range(len(batches)):
                images = reading.popleft().result()
                if number + PREFETCH < len(batches):
                    reading.append(start(batches[number + PREFETCH]))
                yield images.to(self.device, non_blocking=True)

    def _copy_cache(self) -> Tensor:
        try:
            return self.images.to(self.device)
        except torch.OutOfMemoryError as error:
            change = "cache_on_device=False"
            raise RunError(
                f"the device has too little memory for the cache of {len(self.images):,} images, "
                f"{self.images.size / 1e9:.3g} GB; --set {change}, or end other programs on the device",
                change=change,
            ) from error

    def _send(self, values: Tensor) -> Tensor:
        """Copies to the device asynchronously."""
        return (values.pin_memory() if self.device.type == "cuda" else values).to(self.device, non_blocking=True)
