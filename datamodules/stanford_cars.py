"""Stanford Cars as a Dataset, and the LightningDataModule that serves both of its splits.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR-13, 2013. The study trains on the 8,144
photos of the training split and both chooses and judges its models on the 8,041 of the test split: there is no third.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.annotations import Annotation, Annotations
from datamodules.photos import cut_to_box, read_photo
from datamodules.sampling import EpochBatches, Item
from datamodules.transforms import Transform
from utils.randomness import generator, seeded


class CarPhotos(Dataset):
    """The photos of one split; an item is (epoch, index), and its random draws depend on nothing but the seed and these.

    Args:
        annotations: Path, box and label of each photo.
        transform: From an RGB image to a tensor (C, H, W).
        crop: Whether to cut each photo to its box, or also to paste the cut-out on white.
        seed: Start of the random draws.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        transform: Transform,
        *,
        crop: Literal["no", "box", "box on white"] = "no",
        seed: int = 0,
    ) -> None:
        self.annotations = annotations
        self.transform = transform
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, item: Item) -> tuple[Tensor, int]:
        epoch, index = item
        annotation = self.annotations[index]
        image = read_photo(annotation.image_path)
        if self.crop != "no":
            image = cut_to_box(image, annotation.bounding_box, erase_background=self.crop == "box on white")
        with seeded(self.seed, "photo", epoch, index):
            return self.transform(image), annotation.label


def with_boxes_of_others(annotations: Sequence[Annotation], seed: int = 0) -> tuple[Annotation, ...]:
    """Gives each photo the box of another one: the fault behind the published runs C-10 and C-11, as a fixed shuffle."""
    order = torch.randperm(len(annotations), generator=generator(seed, "boxes")).tolist()
    boxes = {photo: annotations[other].bounding_box for photo, other in zip(order, order[1:] + order[:1], strict=True)}
    return tuple(replace(annotation, bounding_box=boxes[index]) for index, annotation in enumerate(annotations))


class StanfordCars(LightningDataModule):
    """Serves batches of images (N, C, H, W) and labels (N,).

    Args:
        annotations: Both splits and the class names.
        train_transform, valid_transform: From an RGB image to a tensor.
        batch_size: Photos a step, for each process.
        num_workers: Processes that read photos.
        crop: As in `CarPhotos`, for the training split alone.
        seed: Start of the order of the training photos and of their augmentation.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        train_transform: Transform,
        valid_transform: Transform,
        batch_size: int,
        num_workers: int,
        crop: Literal["no", "box", "box on white"] = "no",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.annotations = annotations
        self.train_photos = CarPhotos(annotations.train, train_transform, crop=crop, seed=seed)
        self.valid_photos = CarPhotos(annotations.valid, valid_transform, seed=seed)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader:
        batches = self._batches(self.train_photos, shuffle=True)
        if self.trainer is not None:
            # Lightning tells a resumed epoch's number only after the first batches have been fetched.
            epochs = self.trainer.fit_loop.epoch_progress.current
            batches.set_epoch(epochs.processed)
            if epochs.ready > epochs.processed:  # resumed within an epoch
                batches.first_batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return self._loader(self.train_photos, batches)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.valid_photos, self._batches(self.valid_photos, shuffle=False))

    def _batches(self, photos: CarPhotos, *, shuffle: bool) -> EpochBatches:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochBatches(
            len(photos), self.batch_size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size
        )

    def _loader(self, photos: CarPhotos, batches: EpochBatches) -> DataLoader:
        return DataLoader(
            photos,
            batch_sampler=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
