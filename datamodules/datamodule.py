"""Stanford Cars as a Dataset, and the LightningDataModule that serves both of its splits.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR-13, 2013. The study trains on the 8,144
photos of the training split and both chooses and judges its models on the 8,041 of the test split: there is no third.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import DataSplits, ImageRecord
from datamodules.cache import ImageCache, check_cache_folder, open_cache
from datamodules.images import Crop, DecodedImages, ImageSource
from datamodules.on_device.augmentations import BatchedAugmentations
from datamodules.on_device.loader import DeviceLoader
from datamodules.sampler import EpochBatchSampler, Item
from datamodules.transforms import Pipeline, Transform
from utils.errors import DataError, RunError
from utils.processes import ignore_signals
from utils.seeding import generator, seeded

logger = logging.getLogger(__name__)


class ImageDataset(Dataset):
    """The photos of one split; an item is (epoch, index), and its random draws depend on nothing but the seed and these.

    Args:
        source: The photos at the size that the network sees.
        labels: The label of each.
        augment: From such a photo to a tensor (C, H, W).
        seed: Start of the random draws.
    """

    def __init__(self, source: ImageSource, labels: Sequence[int], augment: Transform, *, seed: int = 0) -> None:
        self.source = source
        self.labels = labels
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> tuple[Tensor, int]:
        epoch, index = item
        image = self.source.image(index)
        with seeded(self.seed, "photo", epoch, index):
            return self.augment(image), self.labels[index]


@dataclass
class Split:
    """What one split is made of; `batched` is None where photos are augmented one at a time."""

    name: str
    annotations: Sequence[ImageRecord]
    pipeline: Pipeline
    source: ImageSource
    batched: BatchedAugmentations | None

    @property
    def labels(self) -> list[int]:
        return [annotation.label for annotation in self.annotations]


def _fingerprint(*splits: Sequence[ImageRecord]) -> str:
    """Returns what stays the same as long as the photos keep their names, sizes, labels and boxes, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for annotation in chain(*splits):
        path = annotation.path
        numbers = map(int, (path.stat().st_size, annotation.label, *annotation.bounding_box))
        digest.update(repr((path.name, *numbers)).encode())
    return digest.hexdigest()


def with_boxes_of_others(annotations: Sequence[ImageRecord], seed: int = 0) -> tuple[ImageRecord, ...]:
    """Gives each photo the box of another one: the fault behind the published runs C-10 and C-11, as a fixed shuffle."""
    order = torch.randperm(len(annotations), generator=generator(seed, "boxes")).tolist()
    boxes = {photo: annotations[other].bounding_box for photo, other in zip(order, order[1:] + order[:1], strict=True)}
    return tuple(replace(annotation, bounding_box=boxes[index]) for index, annotation in enumerate(annotations))


class CarsDataModule(LightningDataModule):
    """Serves batches of images (N, C, H, W) and labels (N,).

    Args:
        annotations: Both splits and the class names.
        train_transform, valid_transform: From an RGB image to a tensor.
        batch_size: Photos a step, for each process.
        num_workers: Processes that read and augment photos.
        crop: Whether training photos are cut to their boxes, and what stands around the cut-out.
        seed: Start of the order of the training photos and of their augmentation.
        cache_path: Folder in which resized photos are kept, so that each is decoded once; None for none.
        batched: The augmentations of training and of validation for whole batches, on the device that trains; they take
            the place of `num_workers` and need the cache. None: photo by photo.
        cache_on_device: Whether the cache lies in the device's memory; "auto": where it takes at most half of what is free.
        compile_augmentations: Whether `batched` runs as fused kernels on CUDA.
    """

    def __init__(
        self,
        annotations: DataSplits,
        *,
        train_transform: Pipeline,
        valid_transform: Pipeline,
        batch_size: int,
        num_workers: int,
        crop: Crop = "no",
        seed: int = 0,
        cache_path: Path | None = None,
        batched: tuple[BatchedAugmentations, BatchedAugmentations] | None = None,
        cache_on_device: Literal["auto"] | bool = "auto",
        compile_augmentations: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.valid = (
            Split(
                name,
                photos,
                pipeline,
                DecodedImages(photos, pipeline.resize, crop=cut, upright=annotations.upright),
                None if batched is None else batched[number],
            )
            for number, (name, photos, pipeline, cut) in enumerate(
                (
                    ("train", annotations.train, train_transform, crop),
                    ("valid", annotations.valid, valid_transform, "no"),
                )
            )
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.cache_path = cache_path
        self.cache_on_device = cache_on_device
        self.compile_augmentations = compile_augmentations
        self.resumed_images: int | None = None  # a step, of the run that goes on
        self.fingerprint = ""  # of the photos; tells a run that goes on whether they are still the same
        self.loaders: list[DataLoader] = []  # with processes of their own

    def check_cache_path(self) -> None:
        """Looks whether caches can be written, before anything is begun.

        Raises:
            ConfigError: They cannot.
        """
        if self.cache_path is not None:
            check_cache_folder(self.cache_path)

    def prepare_data(self) -> None:
        """Builds the caches where they are missing: one process of each machine does, while the others wait."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Opens the caches, and builds those that are missing."""
        self.fingerprint = self.fingerprint or _fingerprint(self.train.annotations, self.valid.annotations)
        if self.cache_path is None:
            return
        for split in (self.train, self.valid):
            if isinstance(split.source, DecodedImages) and len(split.source):
                shape = tuple(split.pipeline(Image.new("RGB", (8, 8))).shape)
                split.source = open_cache(self.cache_path, split.name, split.source, shape)

    def train_dataloader(self) -> Iterable:
        batches = self._batches(self.train, shuffle=True)
        if self.trainer is not None:
            # Lightning tells a resumed epoch's number only after the first batches have been fetched.
            epochs = self.trainer.fit_loop.epoch_progress.current
            batches.set_epoch(epochs.processed)
            if epochs.ready > epochs.processed:  # resumed within an epoch
                if self.resumed_images not in (None, batches.batch_size):
                    raise RunError(
                        f"this run was broken off within an epoch with {self.resumed_images} images a step, and would go on "
                        f"with {batches.batch_size}; set devices and num_nodes to as many processes as it had"
                    )
                batches.first_batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return self.loader(self.train, batches, self._device())

    def val_dataloader(self) -> Iterable:
        return self.loader(self.valid, self._batches(self.valid, shuffle=False), self._device())

    def state_dict(self) -> dict[str, Any]:
        return {
            "images_per_step": self._batches(self.train, shuffle=True).batch_size,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed_images = state["images_per_step"]
        if state.get("fingerprint", self.fingerprint) != self.fingerprint:
            logger.warning(
                "the photos are not those that this run was trained with: a name, a size, a label or a box has changed; "
                "it goes on with what is there now"
            )

    def photos(self, split: Split) -> ImageDataset:
        """Returns the photos of a split, one at a time."""
        return ImageDataset(split.source, split.labels, split.pipeline.augment, seed=self.seed)

    def _batches(self, split: Split, *, shuffle: bool) -> EpochBatchSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        count = len(split.source)
        if count < world_size:
            raise DataError(f"{world_size} processes cannot share {count} photos of the split {split.name}")
        return EpochBatchSampler(
            count, self.batch_size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size
        )

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def loader(self, split: Split, batches: EpochBatchSampler, device: torch.device) -> Iterable:
        """Returns what serves `batches` of a split: of whole batches on `device`, or photo by photo on the CPU."""
        if split.batched is not None and isinstance(split.source, ImageCache):
            on_device = self._fits(split, device) if self.cache_on_device == "auto" else self.cache_on_device
            return DeviceLoader(
                split.source, split.labels, batches, split.batched, device=device, on_device=on_device, seed=self.seed,
                compiled=self.compile_augmentations and device.type == "cuda",  # a CPU skips what a photo did not draw
            )  # fmt: skip
        loader = DataLoader(
            self.photos(split),
            batch_sampler=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_signals,
        )
        self.loaders.append(loader)
        return loader

    def _fits(self, split: Split, device: torch.device) -> bool:
        """Says, also to the log, whether the cache takes at most half of the free memory of a CUDA device."""
        if device.type != "cuda":
            return False
        free = torch.cuda.mem_get_info(device)[0]
        fits = 2 * split.source.size <= free
        logger.info(
            "%s photos: the cache of %.2f GB %s, with %.1f GB free", split.name, split.source.size / 1e9,
            "lies on the device" if fits else "stays in its file", free / 1e9,
        )  # fmt: skip
        return fits

    def close(self) -> None:
        """Ends the processes that read photos.

        Lightning ends those of one split, where an error comes up in its loop, and forgets the other's: they would be ended
        with this process alone, after seconds for each of them.
        """
        for loader in self.loaders:
            _shutdown_workers_and_reset_iterator(loader)
        self.loaders = []
