"""The Dataset of one split, and the LightningDataModule that serves the splits in batches.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR-13, 2013. The study trains on the 8,144
images of the training split, and both selects and evaluates its models on the 8,041 of the test split: there is no third.
"""

import hashlib
import logging
import multiprocessing
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import DataSplits, ImageRecord
from datamodules.cache import ImageCache, open_cache
from datamodules.images import Crop, DecodedImages
from datamodules.on_device.augmentations import BatchedAugmentations
from datamodules.on_device.loader import DeviceLoader
from datamodules.sampler import EpochBatchSampler, Item
from datamodules.transforms import Pipeline, Transform
from utils.errors import RunError
from utils.machine import release_freed_memory, worker_count
from utils.processes import ignore_signals
from utils.seeding import generator, seeded

SHARED_MEMORY = Path("/dev/shm")  # where workers put the batches that they make
PREFETCH_FACTOR = 2  # batches that each worker prepares ahead

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ImageDataset(Dataset):
    """The images of one split. An item is (epoch, draw) of the sampler; its random draws depend on the seed and the item alone.

    Args:
        source: The resized images.
        labels: The label of each.
        augment: From such an image to a tensor (C, H, W).
        seed: Seed of the random draws.
    """

    source: DecodedImages | ImageCache
    labels: Sequence[int]
    augment: Transform
    _: KW_ONLY
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> tuple[Tensor, int]:
        epoch, draw = item
        index = draw % len(self.source)
        image = self.source.image(index)
        with seeded(self.seed, "photo", epoch, draw):  # the word is part of the seed: another one changes every draw
            return self.augment(image), self.labels[index]


class WorkerLoader(DataLoader):
    """A DataLoader whose workers end at once: with the last batch, if they do not persist, or by `close`."""

    def __iter__(self) -> Iterator:
        return super().__iter__() if self.persistent_workers else self._iterate_once()

    def _get_iterator(self) -> Iterator:
        if self.num_workers:
            release_freed_memory()
        return super()._get_iterator()

    def _iterate_once(self) -> Iterator:
        self._iterator = self._get_iterator()
        for number, batch in enumerate(self._iterator, start=1):
            if number == len(self):
                self.close()  # Lightning does not ask for what follows the last batch, when a DataLoader would do it
            yield batch

    def close(self) -> None:
        """Ends the workers. Left to the end of this process, each takes seconds."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


@dataclass
class Split:
    """One split; `batched` is None where images are augmented one at a time, on the CPU."""

    name: str
    records: Sequence[ImageRecord]
    pipeline: Pipeline
    source: DecodedImages | ImageCache
    batched: BatchedAugmentations | None

    @property
    def labels(self) -> list[int]:
        return [record.label for record in self.records]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the model gets."""
        return tuple(self.pipeline(Image.new("RGB", (8, 8))).shape)

    @property
    def resized_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the augmentations get."""
        image = self.pipeline.resize(Image.new("RGB", (8, 8)))
        return len(image.getbands()), image.height, image.width


def _fingerprint(*sources: DecodedImages) -> str:
    """Returns a digest of the names, sizes, labels and boxes of the images, wherever their files lie."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        for record, (size, _) in zip(source.records, source.files, strict=True):
            numbers = map(int, (size, record.label, *(record.bounding_box or ())))
            digest.update(repr((record.path.name, *numbers)).encode())
    return digest.hexdigest()


def with_boxes_of_others(records: Sequence[ImageRecord], seed: int = 0) -> tuple[ImageRecord, ...]:
    """Gives each image the box of another one: the fault behind the published runs C-10 and C-11, as a fixed shuffle."""
    order = torch.randperm(len(records), generator=generator(seed, "boxes")).tolist()
    boxes = {image: records[other].bounding_box for image, other in zip(order, order[1:] + order[:1], strict=True)}
    return tuple(replace(record, bounding_box=boxes[index]) for index, record in enumerate(records))


class CarsDataModule(LightningDataModule):
    """Serves batches of images (N, C, H, W) and labels (N,).

    Args:
        splits: The records of the training and the validation split.
        train_transform, valid_transform: From an RGB image to a tensor.
        batch_size: Training images a step, for each process.
        num_workers: Processes that read and augment images; "auto": one a core, shared by the trainings on this machine
            that belong together. They end with a validation, so that those of both splits are never at work together.
        crop: Whether training images are cut to their boxes, and what surrounds the cut-out.
        seed: Seed of the order and of the augmentations.
        balanced: Whether training draws all classes with equal chances.
        cache_path: Folder of the cache of resized images, in which each is decoded once; None for no cache.
        batched: The augmentations of training and of validation, batched on the training device. They replace
            the workers and need the cache. None: per image, on the CPU.
        cache_on_device: Whether the cache lies in the device's memory; "auto": where both splits together take at most half
            of what is free.
        compile_augmentations: Whether `batched` runs as fused kernels on CUDA.
    """

    def __init__(
        self,
        splits: DataSplits,
        *,
        train_transform: Pipeline,
        valid_transform: Pipeline,
        batch_size: int,
        num_workers: Literal["auto"] | int,
        crop: Crop = "no",
        seed: int = 0,
        balanced: bool = False,
        cache_path: Path | None = None,
        batched: tuple[BatchedAugmentations, BatchedAugmentations] | None = None,
        cache_on_device: Literal["auto"] | bool = "auto",
        compile_augmentations: bool = False,
    ) -> None:
        super().__init__()
        train_batched, valid_batched = batched or (None, None)
        train_images, valid_images = (
            DecodedImages(records, pipeline.resize, aspect=pipeline.aspect, crop=cut, upright=splits.upright)
            for records, pipeline, cut in ((splits.train, train_transform, crop), (splits.valid, valid_transform, "no"))
        )
        self.train = Split("train", splits.train, train_transform, train_images, train_batched)
        self.valid = Split("valid", splits.valid, valid_transform, valid_images, valid_batched)
        self.batch_size = batch_size
        self.configured_workers = num_workers
        self.seed = seed
        self.balanced = balanced
        self.cache_path = cache_path
        self.cache_on_device = cache_on_device
        self.compile_augmentations = compile_augmentations
        self.fingerprint = ""  # shows whether a resumed run still has the same images
        self.loaders: list[WorkerLoader] = []
        self._num_workers: int | None = None  # decided with the first loader
        self._cache_fits: bool | None = None

    def prepare_data(self) -> None:
        """Builds missing caches, in one process of each machine, while the others wait."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Opens the caches, and builds missing ones."""
        self.fingerprint = self.fingerprint or _fingerprint(self.train.source, self.valid.source)
        if self.cache_path is None:
            return
        for split in (self.train, self.valid):
            if isinstance(split.source, DecodedImages) and len(split.source):
                split.source = open_cache(self.cache_path, split.name, split.source, split.resized_shape)

    def train_dataloader(self) -> Iterable:
        batches = self.sampler(self.train, shuffle=True)
        if self.trainer is not None:
            # Lightning sets a resumed epoch's number only after the first batches have been fetched.
            epochs = self.trainer.fit_loop.epoch_progress.current
            batches.set_epoch(epochs.processed)
            if epochs.ready > epochs.processed:  # resumed within an epoch
                batches.first_batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return self.loader(self.train, batches, self._device())

    def val_dataloader(self) -> Iterable:
        return self.loader(self.valid, self.sampler(self.valid, shuffle=False), self._device())

    def state_dict(self) -> dict[str, Any]:
        return {"images_per_step": self._images_per_step, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that the resumed run trains on the same images, and on as many a step.

        Raises:
            RunError: It would train on another number of images a step.
        """
        if (before := state["images_per_step"]) != self._images_per_step:
            batch_size, rest = divmod(before, self.trainer.world_size)
            change = f"batch_size={batch_size}" if batch_size >= 2 and rest == 0 else None
            raise RunError(
                f"this run trained on {before} images a step (batch_size × devices × num_nodes) and would continue with "
                f"{self.batch_size} × {self.trainer.num_devices} × {self.trainer.num_nodes} = {self._images_per_step}; "
                f"resume with the devices and num_nodes that it had{f', or with --set {change}' if change else ''}",
                change=change,
            )
        if state.get("fingerprint", self.fingerprint) != self.fingerprint:
            logger.warning(
                "the images are not those that this run was trained on: a name, size, label or box has changed; it continues "
                "with the present ones"
            )

    def dataset(self, split: Split) -> ImageDataset:
        """Returns the images of a split, augmented one at a time."""
        return ImageDataset(split.source, split.labels, split.pipeline.augment, seed=self.seed)

    def loader(self, split: Split, batches: EpochBatchSampler, device: torch.device) -> Iterable:
        """Returns the loader of a split: batched on `device`, or per image on the CPU."""
        if split.batched is not None and isinstance(split.source, ImageCache):
            on_device = self._fits(device) if self.cache_on_device == "auto" else self.cache_on_device
            return DeviceLoader(
                split.source, split.labels, batches, split.batched, device=device, on_device=on_device, seed=self.seed,
                compiled=self.compile_augmentations and device.type == "cuda",  # a CPU skips what an image did not draw
            )  # fmt: skip
        # A worker of validation ends with it, as the idle ones of training stay. Where it is not forked it takes seconds to
        # start, so there it stays too.
        stays = split is self.train or multiprocessing.get_start_method() != "fork"
        loader = WorkerLoader(
            self.dataset(split),
            batch_sampler=batches,
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH_FACTOR if self.num_workers else None,
            persistent_workers=self.num_workers > 0 and stays,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_signals,
        )
        self.loaders.append(loader)
        return loader

    @property
    def num_workers(self) -> int:
        """Processes that read images: as configured, or as many as shared memory has room for, which is logged."""
        if self._num_workers is None:
            processes = self.trainer.num_devices if self.trainer else 1
            self._num_workers = wanted = worker_count(self.configured_workers, processes=processes)
            if wanted and SHARED_MEMORY.is_dir():
                values = max(torch.Size(split.image_shape).numel() for split in (self.train, self.valid))
                batch = 4 * self.batch_size * values  # bytes
                room = shutil.disk_usage(SHARED_MEMORY).free // processes - batch  # one is with this process
                self._num_workers = max(0, min(wanted, room // (PREFETCH_FACTOR * batch)))
            if self._num_workers < wanted:
                logger.warning(
                    "%s is too small for %d processes that load images; %d are used. More room for Docker: "
                    "docker run --shm-size=2g", SHARED_MEMORY, wanted, self._num_workers,
                )  # fmt: skip
        return self._num_workers

    @property
    def _images_per_step(self) -> int:
        return self.batch_size * (self.trainer.world_size if self.trainer else 1)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of each process in an epoch of training."""
        return len(self.sampler(self.train, shuffle=True))

    def sampler(self, split: Split, *, shuffle: bool) -> EpochBatchSampler:
        """Returns the batches of a split, of this process."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochBatchSampler(
            len(split.source), self.batch_size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size,
            labels=split.labels if shuffle and self.balanced else None,
        )  # fmt: skip

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _fits(self, device: torch.device) -> bool:
        """Returns whether the caches of both splits together take at most half of the free memory of a CUDA device."""
        if self._cache_fits is None and device.type == "cuda":
            size = sum(split.source.size for split in (self.train, self.valid) if isinstance(split.source, ImageCache))
            free = torch.cuda.mem_get_info(device)[0]
            self._cache_fits = 2 * size <= free
            logger.info(
                "the cache of %.2f GB %s, with %.1f GB free", size / 1e9,
                "lies on the device" if self._cache_fits else "stays in its files", free / 1e9,
            )  # fmt: skip
        return bool(self._cache_fits)

    def close(self) -> None:
        """Ends the workers of both splits."""
        for loader in self.loaders:
            loader.close()
        self.loaders = []
