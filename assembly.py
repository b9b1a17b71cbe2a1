"""Builds data, model and trainer from a configuration: the one place that knows all parts."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from datamodules import DataSplits, clip_boxes, read_splits, require_boxes, require_trainable
from datamodules.datamodule import CarsDataModule, with_boxes_of_others
from datamodules.mixing import Mixing
from datamodules.on_device.augmentations import BatchedAugmentations, unsupported_augmentations
from datamodules.transforms import Pipeline, build_transform, build_transforms
from losses import build_loss, require_probabilities
from losses.auxiliary import AuxiliaryTargets
from losses.class_weights import class_weights
from losses.distillation import Distillation, Teacher, View
from losses.groupings import group_classes, numbered
from losses.targets import MoreTargets
from models import build_model, count_parameters
from models.classifier import Classifier
from models.compilation import check_compiler
from models.finetuning.pretrained import PretrainedWeights, load_pretrained, published_weights, weights_of_file
from models.optimization import build_lr_scheduler, build_optimizer, step_lr_scheduler, stopping_patience
from training import trainer
from training.branching import branch_checkpoint, read_trunk
from training.checkpoint_callback import Checkpoints
from training.checkpoints import ABOUT, check_targets, read_checkpoint, write_checkpoint
from training.early_stopping import EarlyStopping
from training.progress import TrainingProgress
from training.recorder import Recorder
from training.run_record import RunRecord
from training.signals import SignalHandler
from training.trainer import uses_cuda
from utils.config import Config, ConfigError, Problems
from utils.config.checks import with_sizes
from utils.config.schema import Normalization
from utils.errors import RunError
from utils.machine import total_memory
from utils.processes import check_launch
from utils.runs import BEST, resolve_checkpoint
from utils.runs.branches import Trunk
from utils.runs.teachers import TeacherFile, digests
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
            augmentations = with_sizes(getattr(config, key), config.image_size)
            if config.resize_size is None:
                build_transforms(
                    image_size=config.image_size,
                    convert_to_grayscale=config.convert_to_grayscale,
                    **{key: augmentations},
                )
            else:  # both together make image_size
                for name, params in augmentations.items():
                    build_transform(name, params)
    if not problems.found:
        with problems.of("image_size" if config.resize_size is None else "resize_size"):
            build_pipelines(config)
        with problems.of("augmentation_device"):
            _batched_augmentations(config)
    with problems.of("loss_params" if config.loss_params else "loss_function"):
        weight = (config.loss_params or {}).get("weight")  # later its length is compared with the number of classes
        classes = max(len(weight), 2) if isinstance(weight, list) else STUDY_CLASSES
        loss = build_loss(config.loss_function, config.loss_params, num_classes=classes)
        for key in ("mixup_alpha", "cutmix_alpha"):
            if getattr(config, key) is not None:
                with problems.of(key):
                    require_probabilities(loss, classes)
    with problems.of("architecture"), torch.device("meta"):
        _check_memory(model := _build_model(config, STUDY_CLASSES))
        if config.test_image_size is not None:
            with problems.of("test_image_size"):
                model.eval()(torch.zeros(1, *image_shape(config, testing=True)))
    if config.compile is not None:
        with problems.of("compile"):
            check_compiler()
    for key in ("trackers", "log_to_neptune"):
        with problems.of(key):
            check_trackers(config, key)
    built = None
    with problems.of("accelerator"):
        built = build_trainer(config, Path(), [])
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
    check_launch(rank=built.global_rank, world_size=built.world_size)


def _check_memory(network: torch.nn.Module) -> None:
    size, memory = sum(weight.numel() * weight.element_size() for weight in network.parameters()), total_memory()
    if memory is not None and size > memory:
        raise ConfigError(f"its weights take {size / 1e9:,.0f} GB; this machine has {memory / 1e9:,.0f} GB")


def load_annotations(config: Config) -> DataSplits:
    """Reads, extracts where needed, and checks the data set of `config`.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    annotations, _ = clip_boxes(read_splits(config))
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
        require_boxes(annotations.train, "crop_to_bboxes")
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
        batched=_batched_augmentations(config),
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
    return not obstacles, "; ".join(obstacles) or "every configured transform supports it"


def _batched_augmentations(config: Config) -> tuple[BatchedAugmentations, BatchedAugmentations] | None:
    """Returns the batched augmentations of training and validation; None where images are augmented one at a time."""
    if not _choose_path(config)[0]:
        return None
    normalization = config.normalization.model_dump() if config.normalization else {"mean": None, "std": None}
    size = tuple(config.resize_size or config.image_size)
    train = BatchedAugmentations(*_augmentations(config), image_size=size, **normalization)
    return train, BatchedAugmentations({}, {}, image_size=config.test_size, **normalization)


def build_classifier(
    config: Config, num_classes: int, *, splits: DataSplits | None = None, teachers: Sequence[Teacher] = ()
) -> Classifier:
    """Returns the classifier of `config` with random weights that depend on the seed alone.

    Args:
        config: The configuration.
        num_classes: Number of classes.
        splits: The data set, for `class_weights` and `auxiliary_targets`; None where trained weights are loaded, which need
            neither.
        teachers: The teachers, in a training.

    Raises:
        ConfigError: class_weights or auxiliary_targets do not fit the classes of the data set.
    """
    loss_params = config.loss_params
    if config.class_weights is not None:
        weights = [1.0] * num_classes
        if splits is not None:
            weights = class_weights(config.class_weights, splits.class_counts, splits.class_names)
        loss_params = {**(loss_params or {}), "weight": weights}
    targets = build_targets(config, splits.class_names, teachers) if splits is not None else None
    torch.manual_seed(mix(config.seed, "weights"))
    return Classifier(
        _build_model(config, num_classes + (targets.num_groups if targets else 0)),
        build_loss(config.loss_function, loss_params, num_classes=num_classes),
        optimizer=config.optimizer,
        optimizer_params=config.optimizer_params,
        lr_scheduler=config.lr_scheduler,
        lr_scheduler_params=config.lr_scheduler_params,
        seed=config.seed,
        stop_on_nonfinite_loss=config.stop_on_nonfinite_loss,
        channels_last=config.channels_last,
        compile_mode=config.compile,
        batch_size=config.batch_size,
        groups=parameter_group_settings(config),
        scheduler_step=config.scheduler_step,
        warmup_epochs=config.warmup_epochs,
        accumulate_batches=config.accumulate_batches,
        gradient_clip_norm=config.gradient_clip_norm,
        ema_decay=config.ema_decay,
        freeze_epochs=config.freeze_epochs,
        mixing=build_mixing(config, num_classes),
        flip_at_test=config.flip_at_test,
        targets=targets,
    )


def build_targets(config: Config, class_names: Sequence[str], teachers: Sequence[Teacher]) -> MoreTargets | None:
    """Returns the targets of a training beside the labels; None where there are none.

    Raises:
        ConfigError: auxiliary_targets do not fit the classes.
    """
    distillation = auxiliary = None
    if teachers:
        distillation = Distillation(
            teachers,
            view_of(config, config.image_size),
            temperature=config.distillation_temperature,
            weight=config.distillation_weight,
        )
    if config.auxiliary_targets is not None:
        groups = group_classes(config.auxiliary_targets, class_names)
        numbers = {name: numbered(of_class, class_names) for name, of_class in groups.items()}
        auxiliary = AuxiliaryTargets(numbers, weight=config.auxiliary_weight)
    return MoreTargets(distillation, auxiliary) if distillation or auxiliary else None


def view_of(config: Config, size: Sequence[int]) -> View:
    """Returns what a model of `config` gets of an image of a size, (height, width)."""
    channels, used = image_shape(config)[0], config.normalization
    mean, std = (used.mean, used.std) if used else ([0.0] * channels, [1.0] * channels)
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return View((size[0], size[1]), channels, mean, std)


def build_mixing(config: Config, num_classes: int) -> Mixing | None:
    """Returns what mixes the training batches of `config`; None where none is mixed.

    Raises:
        ConfigError: There is only one class.
    """
    if config.mixup_alpha is None and config.cutmix_alpha is None:
        return None
    return Mixing(
        num_classes,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        probability=config.mix_probability,
        off_epochs=config.mix_off_epochs,
        seed=config.seed,
    )


def parameter_group_settings(config: Config) -> dict[str, Any] | None:
    """Returns the keyword arguments of `parameter_groups`; None for one group of all parameters, as in the study."""
    settings = {
        "head_lr_factor": config.head_lr_factor,
        "layer_decay": config.layer_decay,
        "decay_norm_and_bias": config.decay_norm_and_bias,
    }
    return None if settings == {"head_lr_factor": 1.0, "layer_decay": 1.0, "decay_norm_and_bias": True} else settings


def find_pretrained(config: Config) -> PretrainedWeights:
    """Returns the weights that `pretrained` names; published ones are not downloaded yet.

    Raises:
        ConfigError: There are none.
    """
    if config.pretrained is True:
        return published_weights(config.architecture, image_size=config.image_size)
    try:
        path = resolve_checkpoint(config.pretrained, config.output_path)
    except RunError as error:  # a run without a checkpoint
        raise ConfigError(str(error)) from error
    return weights_of_file(path, config.architecture, image_size=config.image_size)


def resolve_pretrained(config: Config) -> Config:
    """Returns the configuration of a new run with the pretrained weights' mean and std where normalization_params_rgb says so.

    Raises:
        ConfigError: There are no such weights, or their mean and std are not known.
    """
    if config.pretrained is None:
        return config
    problems = Problems(config)
    with problems.of("pretrained"):
        weights = find_pretrained(config)
    problems.raise_any()
    if config.normalization_params_rgb != "pretrained":
        return config
    with problems.of("normalization_params_rgb"):
        if weights.mean is None:
            raise ConfigError(f"the mean and std of {weights.source} are not known; write them")
        values = Normalization(mean=list(weights.mean), std=list(weights.std))
    problems.raise_any()
    return config.model_copy(update={"normalization_params_rgb": values})


def load_pretrained_weights(config: Config, classifier: Classifier, class_names: Sequence[str]) -> None:
    """Loads the pretrained weights of a new run, and logs what was loaded and what differs from how they were trained."""
    if config.pretrained is None:
        return
    weights = find_pretrained(config)
    logger.info(load_pretrained(classifier.model, weights, class_names))
    used = config.normalization
    given = (tuple(used.mean), tuple(used.std)) if used else None
    if weights.mean and not config.convert_to_grayscale and given != (weights.mean, weights.std):
        logger.warning(
            "normalization_params_rgb: the pretrained weights were trained with mean %s and std %s; write "
            "normalization_params_rgb: pretrained to use them", list(weights.mean), list(weights.std),
        )  # fmt: skip


def read_branch(
    config: Config, classifier: Classifier, trunk: Trunk, teachers: Sequence[TeacherFile], *, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the checkpoint from which a branch of `trunk` begins.

    Raises:
        ConfigError: The trunk's checkpoint is of another epoch, or the configuration is not that of a branch.
        DamagedCheckpoint: The trunk's checkpoint cannot be read.
    """
    checkpoint = read_trunk(trunk)
    check_targets(checkpoint[ABOUT], _about_targets(config, digests(teachers), class_names))
    return branch_checkpoint(checkpoint, classifier, patience=_patience(config), config=config.plain())


def copy_best(config: Config, classifier: Classifier, trunk: Trunk, folder: Path) -> None:
    """Writes the best checkpoint of a branch in `folder` until its first epoch, which is the trunk's."""
    if trunk.best.is_file():
        best = read_checkpoint(trunk.best)
        best = branch_checkpoint(best, classifier, patience=_patience(config), config=config.plain())
        write_checkpoint(best, folder / BEST)


def build_record(
    config: Config,
    folder: Path,
    classifier: Classifier,
    annotations: DataSplits,
    *,
    trunk: Trunk | None = None,
    teachers: Sequence[TeacherFile] = (),
) -> RunRecord:
    """Returns the record of a run in `folder`, a branch of `trunk` if there is one, with the files of its teachers."""
    model = classifier.model
    if classifier.num_groups:  # whose rows are dropped from what is kept
        with torch.device("meta"):
            model = _build_model(config, len(annotations.class_names))
    optimizer = build_optimizer(config.optimizer, config.optimizer_params, [torch.nn.Parameter(torch.zeros(1))])
    parameters = study_parameters(
        config,
        architecture=type(model).__name__,
        num_params=count_parameters(model),
        weight_decay=optimizer.defaults.get("weight_decay"),
    )
    return RunRecord(
        folder,
        config,
        parameters=parameters,
        data={
            "num_classes": len(annotations.class_names),
            "train_photos": len(annotations.train),
            "valid_photos": len(annotations.valid),
            "test_photos": len(annotations.test),
            "valid_from": annotations.valid_from,
            "split_digest": annotations.split_digest,
        }
        | ({"branch": trunk.origin()} if trunk else {})
        | ({"teachers": digests(teachers)} if teachers else {}),
    )


def build_callbacks(
    config: Config,
    record: RunRecord,
    *,
    class_names: tuple[str, ...],
    signals: SignalHandler,
    stop_after: int | None = None,
) -> list[Callback]:
    """Returns the callbacks in the order in which they must run."""
    patience = _patience(config)
    about = {
        "config": config.plain(),
        "class_names": list(class_names),
        "split_digest": record.values["split_digest"],
    } | _about_targets(config, record.values.get("teachers"), class_names)
    return [
        TrainingProgress(),
        *([EarlyStopping(patience, extend_finished_run=record.was_finished)] if patience else []),
        Recorder(record.folder, record.trackers),
        Checkpoints(
            record.folder,
            about,
            best_metric=config.best_metric,
            interval=config.checkpoint_interval,
            kept=config.keep_checkpoints or (),
            signals=signals,
            stop_after=stop_after,
        ),
    ]


def _about_targets(config: Config, teachers: dict[str, str] | None, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what checkpoints hold of a run's teachers, path → digest, and auxiliary targets."""
    about: dict[str, Any] = {"teachers": teachers} if teachers else {}
    if config.auxiliary_targets is not None:
        about["auxiliary_targets"] = group_classes(config.auxiliary_targets, class_names)
    return about


def _patience(config: Config) -> int | None:
    return stopping_patience(
        config.early_stopping_patience,
        lr_scheduler=config.lr_scheduler,
        lr_scheduler_params=config.lr_scheduler_params,
    )


def build_trainer(
    config: Config, folder: Path, callbacks: Sequence[Callback], *, first_checkpoint: dict[str, Any] | None = None
) -> Trainer:
    """Returns Lightning's Trainer of `config`; `first_checkpoint` is what it loads first, whatever the file holds.

    Raises:
        ConfigError: The machine has no such accelerator or not so many devices, or another number of processes was started.
    """
    return trainer.build_trainer(
        folder,
        callbacks,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,
        num_epochs=config.num_epochs,
        deterministic=config.deterministic,
        compiled=config.compile is not None,
        accumulate_batches=config.accumulate_batches,
        gradient_clip_norm=config.gradient_clip_norm,
        first_checkpoint=first_checkpoint,
    )


def _build_model(config: Config, num_classes: int) -> torch.nn.Module:
    return build_model(
        config.architecture,
        num_classes=num_classes,
        in_channels=image_shape(config)[0],
        dropout=config.dropout,
        out_channels=config.out_channels,
        width_multiplier=config.width_multiplier,
        image_size=config.image_size,
        drop_path=config.drop_path,
    )


def image_shape(config: Config, *, testing: bool = False) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the images that the model gets in training, or in testing."""
    height, width = config.test_size if testing else config.image_size
    return 1 if config.convert_to_grayscale else 3, height, width


def precision(config: Config) -> str:
    """Returns the precision; for auto, the fastest that the devices support natively."""
    return trainer.resolve_precision(config.precision, accelerator=config.accelerator, devices=config.devices)
