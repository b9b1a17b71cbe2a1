"""Builds data, network and trainer from a configuration: the one place that knows all three."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules.annotations import Annotations, clip_boxes, read_annotations
from datamodules.batched_augmentations import BatchedAugmentations, unbatched_names
from datamodules.stanford_cars import StanfordCars, with_boxes_of_others
from datamodules.transforms import Pipeline, build_transforms
from losses import build_loss
from models import build_model
from models.classifier import Classifier
from models.optimization import build_lr_scheduler, build_optimizer, stopping_patience
from utils.checkpoints import AtomicCheckpointIO, Checkpoints
from utils.config import Config, ConfigError, Problems
from utils.early_stopping import EarlyStopping
from utils.errors import DataError
from utils.interruption import Interruption
from utils.machine import worker_count
from utils.processes import is_first_process
from utils.randomness import mix
from utils.recording import Recorder
from utils.run_record import RunRecord
from utils.trackers import check_trackers
from utils.tracking import study_parameters
from utils.training_progress import TrainingProgress

STUDY_CLASSES = 196

logger = logging.getLogger(__name__)


def check_buildable(config: Config) -> None:
    """Builds every part once, small or without memory, so that a wrong value is found before any data is read.

    Raises:
        ConfigError: Lists all that torch and torchvision do not take.
    """
    problems = Problems(config)
    for key in ("image_augmentations", "tensor_augmentations"):
        with problems.of(key):
            build_transforms(
                image_size=config.image_size,
                convert_to_grayscale=config.convert_to_grayscale,
                **{key: getattr(config, key)},
            )
    with problems.of("augmentation_device"):
        _batched_augmentations(config)
    with problems.of("loss_function"):
        build_loss(config.loss_function, config.loss_params, num_classes=STUDY_CLASSES)
    with problems.of("architecture"), torch.device("meta"):
        _build_network(config, STUDY_CLASSES)
    for key in ("trackers", "log_to_neptune"):
        with problems.of(key):
            check_trackers(config, key)
    with problems.of("accelerator"):
        build_trainer(config, Path(), [])
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = None
    with problems.of("optimizer_params"):
        optimizer = build_optimizer(config.optimizer, config.optimizer_params, [weight])
    if optimizer is not None:
        with problems.of("lr_scheduler_params"):
            build_lr_scheduler(config.lr_scheduler, config.lr_scheduler_params, optimizer)
    problems.raise_any()


def load_annotations(config: Config) -> Annotations:
    """Reads, extracts where needed, and checks the data set of `config`.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    annotations, _ = clip_boxes(
        read_annotations(config.stanford_data_path, archive_folder=config.stanford_raw_data_path)
    )
    if len(annotations.train) < 2 or not annotations.valid:
        raise DataError(
            f"{config.stanford_data_path} has {len(annotations.train)} training and {len(annotations.valid)} validation "
            "photos; expected at least 2 and 1"
        )
    return annotations


def build_pipelines(config: Config) -> tuple[Pipeline, Pipeline]:
    """Returns the ways from photo to tensor for the training and for the validation split."""
    common: dict[str, Any] = {
        "image_size": config.image_size,
        "convert_to_grayscale": config.convert_to_grayscale,
        "normalization": _normalization(config),
    }
    image_augmentations, tensor_augmentations = _augmentations(config)
    train = build_transforms(
        **common, image_augmentations=image_augmentations, tensor_augmentations=tensor_augmentations
    )
    return train, build_transforms(**common)


def build_data(config: Config, annotations: Annotations) -> StanfordCars:
    """Returns the data module of `config`.

    Raises:
        ConfigError: augmentation_device is device, but something configured cannot be done so.
    """
    if config.shuffle_bounding_boxes:
        annotations = replace(annotations, train=with_boxes_of_others(annotations.train))
    train_transform, valid_transform = build_pipelines(config)
    return StanfordCars(
        annotations,
        train_transform=train_transform,
        valid_transform=valid_transform,
        batch_size=config.batch_size,
        num_workers=worker_count(config.num_workers),
        crop="no" if not config.crop_to_bboxes else "box on white" if config.erase_background else "box",
        seed=config.seed,
        cache_path=config.cache_path,
        batched=_batched_augmentations(config),
        cache_on_device=config.cache_on_device,
    )


def _normalization(config: Config) -> dict[str, list[float]] | None:
    params = config.normalization_params_grayscale if config.convert_to_grayscale else config.normalization_params_rgb
    return params.model_dump() if config.normalize and params is not None else None


def _augmentations(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        (config.image_augmentations or {}) if config.augment_images else {},
        (config.tensor_augmentations or {}) if config.augment_tensors else {},
    )


def _batched_augmentations(config: Config) -> tuple[BatchedAugmentations, BatchedAugmentations] | None:
    """Returns the augmentations of whole batches, or None where photos are augmented one at a time; says why."""
    if config.augmentation_device == "cpu":
        return None
    obstacles = [reason for part in _augmentations(config) for reason in unbatched_names(part)]
    if config.cache_path is None:
        obstacles.append("cache_path is null, and whole batches come from the cache")
    if config.augmentation_device == "auto":
        if not _on_cuda(config):
            return None
        if obstacles:
            logger.info("photos are augmented one at a time on the CPU: %s", "; ".join(obstacles))
            return None
    elif obstacles:
        raise ConfigError(f"augmentation_device: device is not possible: {'; '.join(obstacles)}")
    logger.info("whole batches are augmented on the device")
    normalization = _normalization(config) or {"mean": None, "std": None}
    size = (config.image_size[0], config.image_size[1])
    train = BatchedAugmentations(*_augmentations(config), image_size=size, **normalization)
    return train, BatchedAugmentations({}, {}, image_size=size, **normalization)


def build_classifier(config: Config, num_classes: int) -> Classifier:
    """Returns the network of `config` with random weights that depend on the seed alone, ready to be trained."""
    torch.manual_seed(mix(config.seed, "weights"))
    return Classifier(
        _build_network(config, num_classes),
        build_loss(config.loss_function, config.loss_params, num_classes=num_classes),
        optimizer=config.optimizer,
        optimizer_params=config.optimizer_params,
        lr_scheduler=config.lr_scheduler,
        lr_scheduler_params=config.lr_scheduler_params,
        seed=config.seed,
        stop_on_nonfinite_loss=config.stop_on_nonfinite_loss,
        channels_last=config.channels_last,
    )


def build_record(config: Config, folder: Path, classifier: Classifier, annotations: Annotations) -> RunRecord:
    """Returns the record of a run in `folder`."""
    optimizer = build_optimizer(config.optimizer, config.optimizer_params, [torch.nn.Parameter(torch.zeros(1))])
    parameters = study_parameters(
        config,
        network=type(classifier.model).__name__,
        num_params=sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad),
        weight_decay=optimizer.defaults.get("weight_decay"),
    )
    return RunRecord(
        folder,
        config,
        parameters=parameters,
        num_classes=len(annotations.class_names),
        photos=(len(annotations.train), len(annotations.valid)),
    )


def build_callbacks(
    config: Config, record: RunRecord, *, class_names: tuple[str, ...], interruption: Interruption
) -> list[Callback]:
    """Returns early stopping, the recorder of metrics and the writer of checkpoints, in the order they must run."""
    patience = stopping_patience(
        config.early_stopping_patience,
        lr_scheduler=config.lr_scheduler,
        lr_scheduler_params=config.lr_scheduler_params,
    )
    about = {"config": config.plain(), "class_names": list(class_names)}
    return [
        TrainingProgress(),
        *([EarlyStopping(patience, longer=record.had_ended)] if patience else []),
        Recorder(record.folder, record.trackers),
        Checkpoints(record.folder, about, interval=config.checkpoint_interval, interruption=interruption),
    ]


def build_trainer(config: Config, folder: Path, callbacks: list[Callback]) -> Trainer:
    """Returns Lightning's trainer on the device of `config`.

    Raises:
        ConfigError: The machine has no such accelerator or not so many devices, or another number of processes was started.
    """
    try:
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=precision(config),
            max_epochs=config.num_epochs,
            callbacks=callbacks,
            logger=False,  # the recorder speaks to the trackers, so that none of them can end a training
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            deterministic=config.deterministic,
            sync_batchnorm=_on_cuda(config),  # torch has no such batch norm for the CPU
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _check_processes(trainer)
    except (ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"accelerator {config.accelerator!r} with devices {config.devices!r}, strategy {config.strategy!r} and "
            f"precision {config.precision!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return trainer


def _check_processes(trainer: Trainer) -> None:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    if trainer.is_global_zero != is_first_process() or trainer.world_size < int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(
            "each of the processes that were started would train alone; set devices to those on one machine"
        )


def _build_network(config: Config, num_classes: int) -> torch.nn.Module:
    return build_model(
        config.architecture,
        num_classes=num_classes,
        in_channels=1 if config.convert_to_grayscale else 3,
        dropout=config.dropout,
        out_channels=config.out_channels,
        width_multiplier=config.width_multiplier,
        image_size=config.image_size,
    )


def _on_cuda(config: Config) -> bool:
    return torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")


def precision(config: Config) -> str:
    """Returns the precision, for auto the one that the device computes natively."""
    if config.precision != "auto":
        return config.precision
    if not _on_cuda(config):
        return "32-true"
    # Not torch.cuda.is_bf16_supported(): it says yes on cards that only emulate it, four times slower.
    return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "16-mixed"
