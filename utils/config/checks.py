"""Checks between the keys of a configuration, and of the names and parameters of torch and torchvision in it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from utils.config.architectures import architecture_problems, image_size_problem
from utils.config.expressions import parse_expression
from utils.config.problems import Problem
from utils.config.schema import Config
from utils.config.signatures import UNSUPPORTED, Signature, losses, lr_schedulers, optimizers, transforms
from utils.config.yaml_source import shown
from utils.nearest import nearest

# With larger parameters of a transform one image takes all memory, or hours.
MAX_NUMBER = 4096  # pixels, as of image_size; degrees, factors and thresholds are far below
MAX_OPERATIONS = 20  # RandAugment and AugMix; 2 and 3 in their papers
OPERATIONS = ("num_ops", "mixture_width", "chain_depth")

ON_TENSORS = ("ConvertImageDtype", "Normalize", "RandomErasing")
ON_IMAGES = ("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide")  # of 8 bits
CROPS = ("CenterCrop", "RandomCrop", "RandomResizedCrop")  # whose size is image_size unless it is given
EXPRESSIONS = ("lr_lambda", "scale_fn")  # parameters of torch that are functions


def check_values(values: dict[str, Any]) -> Iterator[Problem]:
    """Yields the problems between the `values`, which are valid each by itself; invalid ones are left out.

    Keys that no file sets have their defaults.
    """
    for keys, check in _CHECKS:
        if all(key in values for key in keys):
            yield from check(values)


def _check_call(
    name: str, params: dict[str, Any] | None, catalog: dict[str, Signature], kind: str
) -> Iterator[Problem]:
    """Checks a name of torch and its parameters; an empty path is the name's own."""
    if name in UNSUPPORTED:
        yield (), f"{name!r} cannot be used: {UNSUPPORTED[name]}"
    elif name not in catalog:
        hint = nearest(name, [known for known in catalog if known not in UNSUPPORTED])
        yield (), f"{shown(name)} is not {kind}.{hint}"
    else:
        signature, params = catalog[name], params or {}
        for parameter, value in params.items():
            choices = signature.choices.get(parameter, [])
            if parameter not in signature.names:
                yield (parameter,), f"{name} has no such parameter.{nearest(parameter, signature.names)}"
            elif choices and isinstance(value, str) and value not in choices:
                yield (parameter,), f"{shown(value)} is not a choice of {name}.{nearest(value, choices)}"
        if params.keys() <= set(signature.names):  # else a required one may be misspelled
            for parameter in signature.required:
                if parameter not in params:
                    yield (), f"{name} needs the parameter {parameter!r}"


def _check_named(
    values: dict[str, Any], key: str, params_key: str, catalog: Callable[[], dict[str, Signature]], kind: str
) -> Iterator[Problem]:
    name, params = values[key], values[params_key]
    if name is None:
        if params:
            yield (params_key,), f"has no effect without {key}; write {params_key}: null"
        return
    is_known = name in catalog() and name not in UNSUPPORTED
    for path, message in _check_call(name, params, catalog(), kind):
        yield (params_key, *path) if is_known else (key,), message


def _check_lr_scheduler(values: dict[str, Any]) -> Iterator[Problem]:
    kind = "a scheduler of torch.optim.lr_scheduler"
    yield from _check_named(values, "lr_scheduler", "lr_scheduler_params", lr_schedulers, kind)
    params = values["lr_scheduler_params"] or {}
    for parameter in EXPRESSIONS:
        if (text := params.get(parameter)) is None:
            continue
        inputs = (0, 1, values.get("num_epochs", 1) - 1) if parameter == "lr_lambda" else (0.0, 1.0)
        try:
            if not isinstance(text, str):
                raise ValueError(f"{shown(text)}; expected text such as 'lambda epoch: 0.955 ** epoch'")
            schedule = parse_expression(text)
            for number in inputs:
                schedule(number)
        except ValueError as error:
            yield ("lr_scheduler_params", parameter), str(error)
    milestones = params.get("milestones", [])
    if not isinstance(milestones, list) or not all(type(epoch) is int and epoch >= 0 for epoch in milestones):
        yield ("lr_scheduler_params", "milestones"), f"{shown(milestones)}; expected a list of epochs, such as [67, 82]"
    if params.get("steps_per_epoch", 1) != 1:
        yield (
            ("lr_scheduler_params", "steps_per_epoch"),
            f"{shown(params['steps_per_epoch'])}; lengths count epochs here: write 1, or total_steps: the number of epochs",
        )
    if values["lr_scheduler"] == "ReduceLROnPlateau" and params.get("mode", "min") != "min":
        yield ("lr_scheduler_params", "mode"), "the scheduler monitors the validation loss; expected 'min'"


def _check_transforms(values: dict[str, Any], key: str) -> Iterator[Problem]:
    for name, params in with_sizes(values[key], values.get("image_size", [1, 1])).items():
        for path, message in _check_call(name, params, transforms(), "a transform of torchvision.transforms"):
            yield (key, name, *path), message
        for parameter, value in (params or {}).items():
            most = MAX_OPERATIONS if parameter in OPERATIONS else MAX_NUMBER
            if any(abs(number) > most for number in _numbers(value)):
                yield (key, name, parameter), f"{shown(value)} is too large; expected at most {most:,}"
            elif parameter == "p" and isinstance(value, (int, float)) and not 0 <= value <= 1:
                yield (key, name, parameter), f"{value}; expected a probability, 0 … 1"
        if key == "image_augmentations" and name in ON_TENSORS:
            yield (key, name), f"{name!r} takes tensors; move it to tensor_augmentations"
        if key == "tensor_augmentations" and name in ON_IMAGES:
            yield (key, name), f"{name!r} takes images of 8 bits; move it to image_augmentations"


def with_sizes(
    augmentations: dict[str, dict[str, Any] | None] | None, image_size: Sequence[int]
) -> dict[str, dict[str, Any] | None]:
    """Returns augmentations in which crops without a size have that of the model's images."""
    return {
        name: {"size": list(image_size), **(params or {})} if name in CROPS else params
        for name, params in (augmentations or {}).items()
    }


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def _check_architecture(values: dict[str, Any]) -> Iterator[Problem]:
    names = ("image_size", "dropout", "out_channels")
    settings = {name: values.get(name) for name in (*names, "drop_path")} | {
        "width_multiplier": values.get("width_multiplier", 1.0)
    }
    for key, message in architecture_problems(values["architecture"], **settings):
        yield (key,), message


def _check_normalization(values: dict[str, Any]) -> Iterator[Problem]:
    gray = values["convert_to_grayscale"]
    for key, channels, is_used in (
        ("normalization_params_rgb", 3, not gray),
        ("normalization_params_grayscale", 1, gray),
    ):
        if values[key] is None and values["normalize"] and is_used:
            yield (key,), "normalize: True needs mean and std"
        for name, numbers in values[key].items() if isinstance(values[key], dict) else ():
            if len(numbers) != channels:
                yield (key, name), f"{shown(numbers)}; expected one value per channel: {channels}"


def _check_boxes(values: dict[str, Any], key: str) -> Iterator[Problem]:
    if values[key] and not values["crop_to_bboxes"]:
        yield (key,), "has no effect unless crop_to_bboxes is True"


def _check_class_weights(values: dict[str, Any]) -> Iterator[Problem]:
    name = values["loss_function"]
    if values["class_weights"] is None or name not in losses():
        return
    if "weight" not in losses()[name].names:
        yield (
            ("class_weights",),
            f"{name} takes no weights; use LabelSmoothingCrossEntropy or CrossEntropyLoss, or null",
        )
    elif "weight" in (values["loss_params"] or {}):
        yield ("class_weights",), "loss_params.weight is set too; keep one of them"


def _check_split(values: dict[str, Any]) -> Iterator[Problem]:
    validation, test = values["validation_fraction"], values["test_fraction"]
    if values["split_seed"] is not None and validation is None:
        yield ("split_seed",), "has no effect without validation_fraction; write null"
    if isinstance(test, float) and validation is None:
        yield ("test_fraction",), "has no effect without validation_fraction; write auto"
    elif isinstance(test, float) and validation + test >= 1:
        yield ("test_fraction",), f"{test:g} and validation_fraction, {validation:g}, leave no training images"


def _check_neptune(values: dict[str, Any], key: str) -> Iterator[Problem]:
    if "/" in (values[key] or ""):
        yield (
            (key,),
            f"{shown(values[key])}; expected a name without '/': the project is neptune_username/neptune_project_name",
        )


def _check_epochs(values: dict[str, Any], key: str) -> Iterator[Problem]:
    epochs, most = values[key], values["num_epochs"]
    may_be_all = key == "freeze_epochs"  # a linear head on the features of a frozen backbone
    if epochs > most or (epochs == most and not may_be_all):
        yield (key,), f"{epochs:g}; expected {'at most' if may_be_all else 'fewer than'} num_epochs: {most}"


def _check_sizes(values: dict[str, Any]) -> Iterator[Problem]:
    image_size, resize_size, test_size = (values.get(key) for key in ("image_size", "resize_size", "test_image_size"))
    if resize_size and any(large < small for large, small in zip(resize_size, image_size, strict=True)):
        yield ("resize_size",), f"{resize_size} is smaller than image_size, {image_size}, which is cut from it"
    if test_size and (problem := image_size_problem(values["architecture"], test_size)):
        yield ("test_image_size",), problem


def _check_mixing(values: dict[str, Any]) -> Iterator[Problem]:
    if values["mixup_alpha"] is not None or values["cutmix_alpha"] is not None:
        return
    for key, off in (("mix_probability", 1.0), ("mix_off_epochs", 0)):
        if values.get(key, off) != off:
            yield (key,), f"has no effect without mixup_alpha or cutmix_alpha; write {key}: {off:g}"


def _check_scheduler_step(values: dict[str, Any]) -> Iterator[Problem]:
    name = values["lr_scheduler"]
    if values["scheduler_step"] != "batch" or name not in ("ReduceLROnPlateau", "MultiplicativeLR", None):
        return
    reason = f"{name} is stepped once an epoch" if name else "has no effect without lr_scheduler"
    yield ("scheduler_step",), f"{reason}; write scheduler_step: epoch"


def _check_pretrained(values: dict[str, Any]) -> Iterator[Problem]:
    if values["pretrained"] is not None:
        return
    if values["freeze_epochs"]:
        yield ("freeze_epochs",), "needs pretrained: the frozen backbone would have random weights"
    if values["normalization_params_rgb"] == "pretrained":
        yield ("normalization_params_rgb",), "'pretrained' needs pretrained weights; write mean and std"


def _check_targets(values: dict[str, Any]) -> Iterator[Problem]:
    for main, keys in (
        ("teacher", ("distillation_temperature", "distillation_weight")),
        ("auxiliary_targets", ("auxiliary_weight",)),
    ):
        for key in keys:
            default = Config.model_fields[key].default
            if values[main] is None and values[key] != default:
                yield (key,), f"has no effect without {main}; write {default:g}"
    for key in ("teacher", "auxiliary_targets"):
        names = values[key] if isinstance(values[key], list) else []
        if len(set(names)) < len(names):
            yield (key,), f"{shown(names)} names one twice"


def _check_keep_checkpoints(values: dict[str, Any]) -> Iterator[Problem]:
    if late := [epoch for epoch in values["keep_checkpoints"] or () if epoch > values["num_epochs"]]:
        yield ("keep_checkpoints",), f"{late[0]}; expected at most num_epochs: {values['num_epochs']}"


def _check_groups(values: dict[str, Any]) -> Iterator[Problem]:
    name = values["optimizer"]
    names = optimizers()[name].names if name in optimizers() else ("weight_decay",)
    if not values.get("decay_norm_and_bias", True) and "weight_decay" not in names:
        yield ("decay_norm_and_bias",), f"{name} has no weight decay; write decay_norm_and_bias: True"
    alone = {"head_lr_factor": 1, "layer_decay": 1, "accumulate_batches": 1}
    for key, value in alone.items() if name == "LBFGS" else ():
        if values.get(key, value) != value:
            yield (key,), f"LBFGS has one group and takes each batch alone; write {key}: {value}"


_CHECKS: list[tuple[tuple[str, ...], Callable[[dict[str, Any]], Iterator[Problem]]]] = [
    (("architecture", "dropout", "out_channels"), _check_architecture),
    (
        ("normalize", "convert_to_grayscale", "normalization_params_rgb", "normalization_params_grayscale"),
        _check_normalization,
    ),
    (("lr_scheduler", "lr_scheduler_params"), _check_lr_scheduler),
    (("lr_scheduler", "scheduler_step"), _check_scheduler_step),
    *(
        ((key, "num_epochs"), partial(_check_epochs, key=key))
        for key in ("freeze_epochs", "warmup_epochs", "mix_off_epochs")
    ),
    (("image_size", "architecture"), _check_sizes),
    (("mixup_alpha", "cutmix_alpha"), _check_mixing),
    (("optimizer",), _check_groups),
    (("pretrained", "freeze_epochs", "normalization_params_rgb"), _check_pretrained),
    (("keep_checkpoints", "num_epochs"), _check_keep_checkpoints),
    (
        (
            "teacher",
            "distillation_temperature",
            "distillation_weight",
            "auxiliary_targets",
            "auxiliary_weight",
        ),
        _check_targets,
    ),
    *(
        ((key, params_key), partial(_check_named, key=key, params_key=params_key, catalog=catalog, kind=kind))
        for key, params_key, catalog, kind in (
            ("optimizer", "optimizer_params", optimizers, "an optimizer of torch.optim"),
            ("loss_function", "loss_params", losses, "a loss of torch.nn"),
        )
    ),
    *(((key,), partial(_check_transforms, key=key)) for key in ("image_augmentations", "tensor_augmentations")),
    *(
        ((key, "crop_to_bboxes"), partial(_check_boxes, key=key))
        for key in ("erase_background", "shuffle_bounding_boxes")
    ),
    (("class_weights", "loss_function", "loss_params"), _check_class_weights),
    (("validation_fraction", "test_fraction", "split_seed"), _check_split),
    *(((key,), partial(_check_neptune, key=key)) for key in ("neptune_username", "neptune_project_name")),
]
