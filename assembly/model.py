"""Builds the classifier of a configuration: model, loss, targets, mixing."""

from collections.abc import Sequence
from typing import Any

import torch

from assembly.data import image_shape
from datamodules import DataSplits
from datamodules.mixing import Mixing
from losses import build_loss
from losses.auxiliary import AuxiliaryTargets
from losses.class_weights import class_weights
from losses.distillation import Distillation, Teacher, View
from losses.groupings import group_classes, numbered
from losses.targets import MoreTargets
from models import build_model
from models.classifier import Classifier
from utils.config import Config
from utils.seeding import mix


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
        build_network(config, num_classes + (targets.num_groups if targets else 0)),
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


def build_network(config: Config, num_classes: int) -> torch.nn.Module:
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
