"""The parameters and facts that every tracker logs of a run."""

from typing import Any

from utils.config.schema import Config
from utils.machine import runtime


def study_parameters(
    config: Config, *, architecture: str, num_params: int, weight_decay: float | None
) -> dict[str, Any]:
    """Returns the 26 parameters of a run under the names that the study used.

    Args:
        config: The whole configuration.
        architecture: Name of the model's class, such as GhostNet.
        num_params: Number of trainable parameters.
        weight_decay: The optimizer's, even if it is the default; None if the optimizer has none.
    """
    norm_params = config.normalization
    if norm_params is not None and norm_params != "pretrained":  # which a run has replaced by numbers
        norm_params = norm_params.model_dump()
    gray = config.convert_to_grayscale
    return {
        "runtime": runtime(),
        "architecture": architecture,
        "num_params": num_params,
        "img_size": config.image_size,
        "grayscale": gray,
        "normalize": config.normalize,
        "norm_params_rgb": None if gray else norm_params,
        "norm_params_gray": norm_params if gray else None,
        "crop_to_bboxes": config.crop_to_bboxes,
        "erase_background": config.erase_background,
        "augment_images": config.augment_images,
        "image_augmentations": config.image_augmentations if config.augment_images else None,
        "augment_tensors": config.augment_tensors,
        "tensor_augmentations": config.tensor_augmentations if config.augment_tensors else None,
        "batch_size": config.batch_size,
        "max_num_epochs": config.num_epochs,
        "dropout": config.dropout,
        "out_channels": config.out_channels,
        "loss_function": config.loss_function,
        "loss_params": config.loss_params,
        "optimizer": config.optimizer,
        "learning_rate": (config.optimizer_params or {}).get("lr"),
        "weight_decay": weight_decay,
        "all_optimizer_params": config.optimizer_params,
        "lr_scheduler": config.lr_scheduler,
        "lr_scheduler_params": config.lr_scheduler_params,
    }


def run_facts(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run logs besides its parameters and metrics, at the start and again at the end.

    Args:
        record: The content of run.json.
    """
    known = {name: record[name] for name in ("experiment_id", "description", "started", "runtime", "commit")}
    return {
        **{name: value for name, value in known.items() if value is not None},
        "tags": record["tags"],
        "status": record["status"],
        "error": record["error"] or "",  # always logged: a resumed run must not keep the error of its first part
        "duration": record["seconds"],
        **{f"version_{name}": version for name, version in record["versions"].items()},
    }
