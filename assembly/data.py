"""Builds the data of a configuration: records, pipelines, the data module."""

from dataclasses import replace
from typing import Any

from assembly.trainer import uses_cuda
from datamodules import DataSplits, clip_boxes, read_splits, require_boxes, require_trainable
from datamodules.datamodule import CarsDataModule, with_boxes_of_others
from datamodules.on_device.augmentations import BatchedAugmentations, unsupported_augmentations
from datamodules.transforms import Pipeline, build_transforms
from utils.config import Config, ConfigError
from utils.config.checks import with_sizes


def load_annotations(config: Config) -> DataSplits:
    """Reads, extracts where needed, and checks the data set of `config`.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    annotations = clip_boxes(read_splits(config))
    require_trainable(annotations, config.data_path)
    return annotations


def build_pipelines(config: Config) -> tuple[Pipeline, Pipeline]:
    """Returns the pipelines from image to tensor, of the training and of the validation split."""
    common: dict[str, Any] = {
        "aspect": config.aspect,
        "convert_to_grayscale": config.convert_to_grayscale,
        "normalization": config.normalization and config.normalization.model_dump(),
    }
    image_augmentations, tensor_augmentations = _augmentations(config)
    train = build_transforms(
        **common,
        image_size=config.image_size,
        resize_size=config.resize_size,
        image_augmentations=image_augmentations,
        tensor_augmentations=tensor_augmentations,
    )
    return train, build_transforms(**common, image_size=config.test_size)


def build_data(config: Config, annotations: DataSplits) -> CarsDataModule:
    """Returns the data module of `config`.

    Raises:
        ConfigError: augmentation_device is device, but a configured transform does not support it.
    """
    if config.crop_to_bboxes:
        require_boxes(annotations.train)
    if config.shuffle_bounding_boxes:
        annotations = replace(annotations, train=with_boxes_of_others(annotations.train))
    train_transform, valid_transform = build_pipelines(config)
    return CarsDataModule(
        annotations,
        train_transform=train_transform,
        valid_transform=valid_transform,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        crop="no" if not config.crop_to_bboxes else "box on white" if config.erase_background else "box",
        seed=config.seed,
        balanced=config.sampler == "balanced",
        cache_path=config.cache_path,
        batched=batched_augmentations(config),
        cache_on_device=config.cache_on_device,
        compile_augmentations=config.compile is not None,
    )


def _augmentations(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        with_sizes(config.image_augmentations, config.image_size) if config.augment_images else {},
        with_sizes(config.tensor_augmentations, config.image_size) if config.augment_tensors else {},
    )


def augmentation_path(config: Config) -> str:
    """Returns one line on where images are augmented, and why there."""
    on_device, reason = _choose_path(config)
    if on_device:
        unused = "; num_workers has no effect" if config.num_workers not in ("auto", 0) else ""
        return f"images are augmented in batches on the device: {reason}{unused}"
    unused = "; cache_on_device has no effect" if config.cache_on_device is True else ""
    return f"images are augmented one at a time on the CPU: {reason}{unused}"


def _choose_path(config: Config) -> tuple[bool, str]:
    """Returns whether images are augmented in batches on the device, and why."""
    obstacles = [reason for part in _augmentations(config) for reason in unsupported_augmentations(part)]
    if config.cache_path is None:
        obstacles.append("cache_path is null, and batches come from the cache")
    match config.augmentation_device:
        case "cpu":
            return False, "augmentation_device is cpu"
        case "device" if obstacles:
            raise ConfigError("; ".join(obstacles))  # check_buildable adds the key and the value
        case "device":
            return True, "augmentation_device is device"
    if not uses_cuda(config.accelerator):
        return False, "no CUDA device is used"
    if not obstacles:
        try:
            _build_batched(config)
        except (ConfigError, ValueError) as error:  # such as a crop that pads, which only the CPU's way does
            obstacles.append(str(error))
    return not obstacles, "; ".join(obstacles) or "every configured transform supports it"


def batched_augmentations(config: Config) -> tuple[BatchedAugmentations, BatchedAugmentations] | None:
    """Returns the batched augmentations of training and validation; None where images are augmented one at a time."""
    return _build_batched(config) if _choose_path(config)[0] else None


def _build_batched(config: Config) -> tuple[BatchedAugmentations, BatchedAugmentations]:
    normalization = config.normalization.model_dump() if config.normalization else {"mean": None, "std": None}
    size = tuple(config.resize_size or config.image_size)
    train = BatchedAugmentations(*_augmentations(config), image_size=size, **normalization)
    return train, BatchedAugmentations({}, {}, image_size=config.test_size, **normalization)


def image_shape(config: Config, *, testing: bool = False) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the images that the model gets in training, or in testing."""
    height, width = config.test_size if testing else config.image_size
    return 1 if config.convert_to_grayscale else 3, height, width
