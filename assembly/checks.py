"""Builds each part of a configuration once, to find wrong values before any data is read."""

import math
import warnings
from pathlib import Path

import torch

from assembly.data import batched_augmentations, build_pipelines, image_shape
from assembly.model import build_network
from assembly.trainer import build_trainer
from datamodules.transforms import build_transform, build_transforms
from losses import build_loss, require_probabilities
from models.compilation import check_compiler
from models.optimization import build_lr_scheduler, build_optimizer, step_lr_scheduler
from utils.config import Config, ConfigError, Problems
from utils.config.checks import with_sizes
from utils.machine import total_memory
from utils.processes import check_launch
from utils.tracking import check_trackers

STUDY_CLASSES = 196


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
            batched_augmentations(config)
    with problems.of("loss_params" if config.loss_params else "loss_function"):
        weight = (config.loss_params or {}).get("weight")  # later its length is compared with the number of classes
        classes = max(len(weight), 2) if isinstance(weight, list) else STUDY_CLASSES
        loss = build_loss(config.loss_function, config.loss_params, num_classes=classes)
        for key in ("mixup_alpha", "cutmix_alpha"):
            if getattr(config, key) is not None:
                with problems.of(key):
                    require_probabilities(loss, classes)
    with problems.of("architecture"), torch.device("meta"):
        _check_memory(model := build_network(config, STUDY_CLASSES))
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
    if built is not None:
        _check_precision(config, str(built.precision), problems)
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


def _check_precision(config: Config, precision: str, problems: Problems) -> None:
    """Finds what Lightning's mixed precision refuses in the first step."""
    with problems.of("optimizer"):
        if precision == "16-mixed" and config.optimizer == "LBFGS":
            raise ConfigError("it does not go with the precision 16-mixed; set precision: 32-true")
    with problems.of("optimizer_params"):
        is_fused = (config.optimizer_params or {}).get("fused")
        if precision.endswith("-mixed") and is_fused and config.gradient_clip_norm is not None:
            raise ConfigError(f"fused does not go with gradient_clip_norm and the precision {precision}; leave it out")


def _check_memory(network: torch.nn.Module) -> None:
    size, memory = sum(weight.numel() * weight.element_size() for weight in network.parameters()), total_memory()
    if memory is not None and size > memory:
        raise ConfigError(f"its weights take {size / 1e9:,.0f} GB; this machine has {memory / 1e9:,.0f} GB")
