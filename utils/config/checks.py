"""What must hold between the keys of a configuration, and which names of torch and torchvision exist."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from utils.config.architectures import ARCHITECTURE_LIMITS
from utils.config.expressions import parse_expression
from utils.config.signatures import UNUSABLE, Signature, losses, lr_schedulers, optimizers, transforms
from utils.config.yaml_source import Key, number_hint, shown
from utils.nearest import nearest

Problem = tuple[Key, str]

MOST_PROBLEMS = 50  # of one kind that are looked for: to seek the nearest names of thousands takes minutes

# What a transform may be given: with more, one photo takes all memory, or forever.
LARGEST_NUMBER = 4096  # pixels, as of image_size; degrees, factors and thresholds are far below
OPERATIONS = ("num_ops", "mixture_width", "chain_depth")  # of RandAugment and AugMix; their papers have 2 and 3
MOST_OPERATIONS = 20

ON_TENSORS = ("ConvertImageDtype", "Normalize", "RandomErasing")
# Parameters of torch that are functions; a configuration gives them as an expression.
EXPRESSIONS = ("lr_lambda", "scale_fn")


def check_values(values: dict[str, Any], wrong: set[str | int]) -> list[Problem]:
    """Returns what is wrong between the `values`, apart from the keys that are `wrong` in themselves."""

    def usable(*keys: str) -> bool:
        return all(key in values and key not in wrong for key in keys)

    problems: list[Problem] = []
    for keys, check in _CHECKS:
        if usable(*keys):
            problems += islice(check(values), MOST_PROBLEMS)
    return problems


def _named(
    name: str, key: str, params_key: str, given: Any, catalogue: dict[str, Signature], kind: str
) -> Iterator[Problem]:
    """Checks a name of torch and the parameters given to it."""
    path: Key = (key,) if key != params_key else (key, name)
    if name in UNUSABLE:
        yield path, f"'{name}' cannot be used here: {UNUSABLE[name]}"
        return
    if name not in catalogue:
        yield (
            path,
            f"{shown(name)} is not {kind}.{nearest(name, [known for known in catalogue if known not in UNUSABLE])}",
        )
        return
    signature = catalogue[name]
    params_path: Key = (params_key,) if key != params_key else (key, name)
    given = given or {}
    for parameter, value in given.items():
        if parameter not in signature.names:
            yield (*params_path, parameter), f"{name} takes no such parameter.{nearest(parameter, signature.names)}"
        elif hint := number_hint(value):
            yield (*params_path, parameter), hint
    for parameter in signature.required:
        if parameter not in given:
            yield params_path, f"{name} needs the parameter '{parameter}'"


def _check_optimizer(values: dict[str, Any]) -> Iterator[Problem]:
    yield from _named(
        values["optimizer"], "optimizer", "optimizer_params", values["optimizer_params"], optimizers(),
        "an optimizer of torch.optim",
    )  # fmt: skip


def _check_loss(values: dict[str, Any]) -> Iterator[Problem]:
    yield from _named(
        values["loss_function"], "loss_function", "loss_params", values["loss_params"], losses(), "a loss of torch.nn"
    )


def _check_lr_scheduler(values: dict[str, Any]) -> Iterator[Problem]:
    name, given = values["lr_scheduler"], values["lr_scheduler_params"]
    if name is None:
        if given:
            yield ("lr_scheduler_params",), "there is no lr_scheduler to take them; write lr_scheduler_params: null"
        return
    yield from _named(
        name, "lr_scheduler", "lr_scheduler_params", given, lr_schedulers(), "a scheduler of torch.optim.lr_scheduler"
    )
    for parameter, value in (given or {}).items():
        if parameter in EXPRESSIONS:
            try:
                if not isinstance(value, str):
                    raise ValueError(f"{shown(value)} is not a text such as 'lambda epoch: 0.955 ** epoch'")
                schedule = parse_expression(value)
                for epoch in (
                    (0, 1, max(values.get("num_epochs") or 1, 1) - 1) if parameter == "lr_lambda" else (0.0, 1.0)
                ):
                    schedule(epoch)
            except (ValueError, TypeError) as error:
                yield ("lr_scheduler_params", parameter), str(error)
    milestones = (given or {}).get("milestones")
    if milestones is not None and not (isinstance(milestones, list) and all(map(_is_epoch, milestones))):
        yield ("lr_scheduler_params", "milestones"), f"{shown(milestones)}; expected a list of epochs, such as [67, 82]"
    for parameter in ("gamma", "factor"):
        value = (given or {}).get(parameter)
        if value is not None and not (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0):
            yield ("lr_scheduler_params", parameter), f"{shown(value)}; expected a number of at least 0"
    if name == "ReduceLROnPlateau" and (given or {}).get("mode", "min") != "min":
        yield ("lr_scheduler_params", "mode"), "the scheduler follows the validation loss: mode is 'min'"


def _is_epoch(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_transforms(key: str) -> Callable[[dict[str, Any]], Iterator[Problem]]:
    def check(values: dict[str, Any]) -> Iterator[Problem]:
        for name, given in (values[key] or {}).items():
            yield from _named(name, key, key, given, transforms(), "a transform of torchvision.transforms")
            for parameter, value in (given or {}).items():
                largest = MOST_OPERATIONS if parameter in OPERATIONS else LARGEST_NUMBER
                if any(abs(number) > largest for number in _numbers(value)):
                    yield (key, name, parameter), f"{shown(value)} is too large; expected at most {largest:,}"
                elif parameter == "p" and isinstance(value, (int, float)) and not 0 <= value <= 1:
                    yield (key, name, parameter), f"{value}; expected a probability, 0 … 1"
            if key == "image_augmentations" and name in ON_TENSORS:
                yield (key, name), f"'{name}' works on tensors: write it under tensor_augmentations"

    return check


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def _check_architecture(values: dict[str, Any]) -> Iterator[Problem]:
    name = values["architecture"]
    if name.startswith("timm/"):
        if values["out_channels"] is not None:
            yield ("out_channels",), f"{name} has no such width; write out_channels: null"
        if values.get("width_multiplier", 1.0) != 1.0:
            yield ("width_multiplier",), f"{name} takes none; write width_multiplier: 1.0"
        return
    if name not in ARCHITECTURE_LIMITS:
        yield (
            ("architecture",),
            f"{shown(name)} is not an architecture.{nearest(name, [*ARCHITECTURE_LIMITS, 'timm/<name>'])}",
        )
        return
    limits = ARCHITECTURE_LIMITS[name]
    if limits.out_channels and values["out_channels"] is None:
        yield ("out_channels",), f"{name} needs a width, such as 320"
    if not limits.out_channels and values["out_channels"] is not None:
        yield ("out_channels",), f"{name} has no such width; write out_channels: null"
    if not limits.out_channels and values.get("width_multiplier", 1.0) != 1.0:
        yield ("width_multiplier",), f"{name} takes none; write width_multiplier: 1.0"
    if not limits.dropout and values["dropout"] is not None:
        yield ("dropout",), f"{name} has no dropout layer; write dropout: null"
    if problem := image_size_problem(name, values["image_size"]):
        yield ("image_size",), problem


def image_size_problem(architecture: str, image_size: Sequence[int]) -> str | None:
    """Returns what is wrong with the height and width, pixels, for an architecture, or None; timm's have no limit here."""
    smallest = ARCHITECTURE_LIMITS[architecture].smallest_image_size if architecture in ARCHITECTURE_LIMITS else 1
    if min(image_size) < smallest:
        return f"{list(image_size)} is too small for {architecture}: at least {smallest} pixels a side"
    if max(image_size) > LARGEST_NUMBER:
        return f"{list(image_size)} is too large for {architecture}: at most {LARGEST_NUMBER} pixels a side"
    return None


def _check_normalization(values: dict[str, Any]) -> Iterator[Problem]:
    for key, channels, used in (
        ("normalization_params_rgb", 3, not values["convert_to_grayscale"]),
        ("normalization_params_grayscale", 1, values["convert_to_grayscale"]),
    ):
        params = values[key]
        if params is None:
            if values["normalize"] and used:
                yield (key,), "normalize: True needs mean and std here"
            continue
        for name in ("mean", "std"):
            if len(params[name]) != channels:
                yield (
                    (key, name),
                    f"{shown(params[name])} has {len(params[name])} values; expected one a channel: {channels}",
                )


def _check_boxes(values: dict[str, Any]) -> Iterator[Problem]:
    for key in ("erase_background", "shuffle_bounding_boxes"):
        if values.get(key) and not values["crop_to_bboxes"]:
            yield (key,), "True changes nothing without crop_to_bboxes: True"


def _check_neptune(values: dict[str, Any]) -> Iterator[Problem]:
    for key in ("neptune_username", "neptune_project_name"):
        if isinstance(values[key], str) and "/" in values[key]:
            yield (key,), f"{shown(values[key])} must be one name; the project is neptune_username/neptune_project_name"


_CHECKS: list[tuple[tuple[str, ...], Callable[[dict[str, Any]], Iterator[Problem]]]] = [
    (("architecture", "dropout", "out_channels", "image_size"), _check_architecture),
    (
        ("normalize", "convert_to_grayscale", "normalization_params_rgb", "normalization_params_grayscale"),
        _check_normalization,
    ),
    (("crop_to_bboxes", "erase_background"), _check_boxes),
    (("image_augmentations",), _check_transforms("image_augmentations")),
    (("tensor_augmentations",), _check_transforms("tensor_augmentations")),
    (("optimizer", "optimizer_params"), _check_optimizer),
    (("lr_scheduler", "lr_scheduler_params"), _check_lr_scheduler),
    (("loss_function", "loss_params"), _check_loss),
    (("neptune_username", "neptune_project_name"), _check_neptune),
]
