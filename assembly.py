"""Builds data, network and trainer from a configuration: the one place that knows all three."""

import logging
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules import DataSplits, clip_boxes, read_data
from datamodules.datamodule import CarsDataModule, with_boxes_of_others
from datamodules.on_device.augmentations import BatchedAugmentations, unsupported_augmentations
from datamodules.transforms import Pipeline, build_transforms
from losses import build_loss
from models import build_model, count_parameters
from models.classifier import Classifier
from models.compilation import check_compiler
from models.optimization import build_lr_scheduler, build_optimizer, step_lr_scheduler, stopping_patience
from training.checkpoints import AtomicCheckpointIO, Checkpoints
from training.early_stopping import EarlyStopping
from training.progress import TrainingProgress
from training.recorder import Recorder
from training.run_record import RunRecord
from training.signals import SignalHandler
from utils.config import Config, ConfigError, Problems
from utils.errors import DataError
from utils.machine import total_memory
from utils.processes import check_launch
from utils.seeding import mix
from utils.tracking import check_trackers
from utils.tracking.parameters import study_parameters

STUDY_CLASSES = 196

logger = logging.getLogger(__name__)


def check_buildable(config: Config) -> None:
    """Builds each part once, small or on the meta device, to find wrong values before any data is read.

    Raises:
        ConfigError: Lists every value that torch or torchvision does not take.
    """
    problems = Problems(config)
    for key in ("image_augmentations", "tensor_augmentations"):
        with problems.of(key):
            build_transforms(
                image_size=config.image_size,
                convert_to_grayscale=config.convert_to_grayscale,
                **{key: getattr(config, key)},
            )
    if not problems.found:
        with problems.of("augmentation_device"):
            _batched_augmentations(config)
    with problems.of("loss_params" if config.loss_params else "loss_function"):
        weight = (config.loss_params or {}).get("weight")  # later its length is compared with the number of classes
        classes = max(len(weight), 2) if isinstance(weight, list) else STUDY_CLASSES
        build_loss(config.loss_function, config.loss_params, num_classes=classes)
    with problems.of("architecture"), torch.device("meta"):
        _check_memory(_build_network(config, STUDY_CLASSES))
    if config.compile is not None:
        with problems.of("compile"):
            check_compiler()
    for key in ("trackers", "log_to_neptune"):
        with problems.of(key):
            check_trackers(config, key)
    trainer = None
    with problems.of("accelerator"):
        trainer = build_trainer(config, Path(), [])
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = None
    with problems.of("optimizer_params"):
        optimizer = build_optimizer(config.optimizer, config.optimizer_params, [weight])
        if not (config.optimizer_params or {}).get("capturable"):  # CUDA only; this weight is on the CPU
            weight.grad = torch.zeros(1)
            optimizer.step(lambda: torch.zeros(()))
    if optimizer is not None:
        # Some parameters of schedulers are read only in a later epoch.
        with problems.of("lr_scheduler_params"), warnings.catch_warnings(action="ignore"):
            lr_scheduler = build_lr_scheduler(config.lr_scheduler, config.lr_scheduler_params, optimizer)
            for epoch in range(config.num_epochs if lr_scheduler is not None else 0):
                if not 0 <= (lr := optimizer.param_groups[0]["lr"]) < math.inf:
                    raise ValueError(f"learning rate {lr} in epoch {epoch}")
                step_lr_scheduler(lr_scheduler, valid_loss=1.0)
    problems.raise_any()
    check_launch(rank=trainer.global_rank, world_size=trainer.world_size)


def _check_memory(network: torch.nn.Module) -> None:
    size, memory = sum(weight.numel() * weight.element_size() for weight in network.parameters()), total_memory()
    if memory is not None and size > memory:
        raise ConfigError(f"its weights take {size / 1e9:,.0f} GB; this machine has {memory / 1e9:,.0f} GB")


def read_splits(config: Config) -> DataSplits:
    """Reads the records of the data set of `config`.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    return read_data(config.data_path, raw_path=config.raw_data_path, exif_orientation=config.exif_orientation)


def load_annotations(config: Config) -> DataSplits:
    """Reads, extracts where needed, and checks the data set of `config`.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    annotations, _ = clip_boxes(read_splits(config))
    if len(annotations.train) < 2 or not annotations.valid:
        raise DataError(
            f"{config.data_path} has {len(annotations.train)} training and {len(annotations.valid)} validation "
            "photos; expected at least 2 and 1"
        )
    return annotations


def build_pipelines(config: Config) -> tuple[Pipeline, Pipeline]:
    """Returns the ways from photo to tensor for the training and for the validation split."""
    common: dict[str, Any] = {
        "image_size": config.image_size,
        "convert_to_grayscale": config.convert_to_grayscale,
        "normalization": config.normalization and config.normalization.model_dump(),
    }
    image_augmentations, tensor_augmentations = _augmentations(config)
    train = build_transforms(
        **common, image_augmentations=image_augmentations, tensor_augmentations=tensor_augmentations
    )
    return train, build_transforms(**common)


def build_data(config: Config, annotations: DataSplits) -> CarsDataModule:
    """Returns the data module of `config`.

    Raises:
        ConfigError: augmentation_device is device, but something configured cannot be done so.
    """
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
        cache_path=config.cache_path,
        batched=_batched_augmentations(config),
        cache_on_device=config.cache_on_device,
        compile_augmentations=config.compile is not None,
    )


def _augmentations(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        (config.image_augmentations or {}) if config.augment_images else {},
        (config.tensor_augmentations or {}) if config.augment_tensors else {},
    )


def _obstacles(config: Config) -> list[str]:
    """Returns why whole batches cannot be augmented at once; nothing where they can."""
    reasons = [reason for part in _augmentations(config) for reason in unsupported_augmentations(part)]
    if config.cache_path is None:
        reasons.append("cache_path is null, and whole batches come from the cache")
    return reasons


def augmentation_path(config: Config) -> str:
    """Returns one line on how photos are augmented, and why so."""
    if _batched_augmentations(config) is not None:
        asked = "augmentation_device is device"
        why = asked if config.augmentation_device == "device" else "every configured transform can be done so"
        unused = "; num_workers has no effect" if config.num_workers not in ("auto", 0) else ""
        return f"whole batches are augmented at once, on the device of the network: {why}{unused}"
    reason = "augmentation_device is cpu" if config.augmentation_device == "cpu" else "no CUDA device is used"
    why = "; ".join(_obstacles(config)) if _on_cuda(config) else ""
    unused = "; cache_on_device has no effect" if config.cache_on_device is True else ""
    return f"photos are augmented one at a time on the CPU: {why or reason}{unused}"


def _batched_augmentations(config: Config) -> tuple[BatchedAugmentations, BatchedAugmentations] | None:
    """Returns the augmentations of whole batches, or None where photos are augmented one at a time."""
    obstacles = _obstacles(config)
    wanted = config.augmentation_device
    if wanted == "device" and obstacles:
        raise ConfigError("; ".join(obstacles))  # of which check_buildable says the key and the value
    if wanted == "cpu" or (wanted == "auto" and (obstacles or not _on_cuda(config))):
        return None
    normalization = config.normalization.model_dump() if config.normalization else {"mean": None, "std": None}
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
        compile_mode=config.compile,
        batch_size=config.batch_size,
    )


def build_record(config: Config, folder: Path, classifier: Classifier, annotations: DataSplits) -> RunRecord:
    """Returns the record of a run in `folder`."""
    optimizer = build_optimizer(config.optimizer, config.optimizer_params, [torch.nn.Parameter(torch.zeros(1))])
    parameters = study_parameters(
        config,
        architecture=type(classifier.model).__name__,
        num_params=count_parameters(classifier),
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
    config: Config, record: RunRecord, *, class_names: tuple[str, ...], signals: SignalHandler
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
        *([EarlyStopping(patience, extend_finished_run=record.was_finished)] if patience else []),
        Recorder(record.folder, record.trackers),
        Checkpoints(record.folder, about, interval=config.checkpoint_interval, signals=signals),
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
            # cuDNN tries its kernels at the first batch of each size and keeps the fastest.
            benchmark=_on_cuda(config) and not config.deterministic,
            sync_batchnorm=_on_cuda(config),  # torch has no such batch norm for the CPU
            inference_mode=config.compile is None,  # its tensors and compiled networks do not always go together
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if (environment := getattr(trainer.strategy, "cluster_environment", None)) is not None:
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except (ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"accelerator {config.accelerator!r} with devices {config.devices!r}, strategy {config.strategy!r} and "
            f"precision {config.precision!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return trainer


def _build_network(config: Config, num_classes: int) -> torch.nn.Module:
    return build_model(
        config.architecture,
        num_classes=num_classes,
        in_channels=image_shape(config)[0],
        dropout=config.dropout,
        out_channels=config.out_channels,
        width_multiplier=config.width_multiplier,
        image_size=config.image_size,
    )


def image_shape(config: Config) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of an image that the network gets."""
    height, width = config.image_size
    return 1 if config.convert_to_grayscale else 3, height, width


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
