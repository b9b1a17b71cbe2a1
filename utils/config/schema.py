"""The keys of `config.yml`: type, range, default, unit and meaning of each, and whether it may change in a resumed run.

The study's own keys must be set. Keys that this project adds have defaults, which `config.yml` repeats, so that a
configuration of the published project loads unchanged.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from utils.config.architectures import ARCHITECTURE_LIMITS

# Marks of a key. Without one, it shapes the result and stays as it is in a resumed run.
RESUMABLE = {"resumable": True}  # may change in a resumed run
NO_EFFECT = {
    "affects_result": False
}  # does not shape the result: how a run is named and logged, where and on what it runs
LOCAL = RESUMABLE | NO_EFFECT

RENAMED_KEYS = {"stanford_data_path": "data_path", "stanford_raw_data_path": "raw_data_path"}  # former name: name


def _empty_to_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _placeholder_to_none(value: Any) -> Any:
    """Turns placeholders of the published template, such as `<neptune.ai API token>`, and empty text into None."""
    return None if isinstance(value, str) and value.startswith("<") and value.endswith(">") else _empty_to_none(value)


def _text_to_path(value: Any) -> Any:
    try:
        return Path(value).expanduser() if isinstance(value, str) and value else value
    except RuntimeError as error:  # ~name of an unknown user
        raise ValueError(f"an existing home folder: {error}") from error


OptionalText = Annotated[str | None, BeforeValidator(_empty_to_none)]
NeptuneText = Annotated[str | None, BeforeValidator(_placeholder_to_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_text_to_path), BeforeValidator(_placeholder_to_none)]
RequiredPath = Annotated[Path, BeforeValidator(_text_to_path)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Parameters = dict[str, Any]
Transforms = dict[str, Parameters | None]


class Normalization(BaseModel):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    mean: list[Annotated[float, Field(ge=0, le=1)]]
    std: list[Annotated[float, Field(gt=0, le=1)]]


class Config(BaseModel):
    """A complete, valid configuration."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=(), title="config.yml"
    )

    # Run
    experiment_id: OptionalText = Field(
        None, description="Name of the published experiment, such as C-50.", json_schema_extra=NO_EFFECT
    )
    description: OptionalText = Field(None, description="Purpose of the run, in one line.", json_schema_extra=NO_EFFECT)
    tags: list[str] = Field([], description="Words to find the run by.", json_schema_extra=NO_EFFECT)
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")
    deterministic: bool = Field(
        False, description="Use deterministic kernels only: bit-equal results on a GPU too, but slower."
    )

    # Logging
    loglevel: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="Minimum log level.", json_schema_extra=LOCAL
    )
    logging_dir: OptionalPath = Field(
        None, description="Folder of the log files; null: the run's folder.", json_schema_extra=LOCAL
    )
    trackers: list[Literal["mlflow", "tensorboard", "wandb"]] | None = Field(
        ["mlflow"],
        description="Experiment trackers; mlflow is the local dashboard. null: only the run's folder.",
        json_schema_extra=LOCAL,
    )
    mlflow_artifacts: bool = Field(
        False,
        description="Log best.ckpt and its ONNX export as MLflow artifacts at the end of a run.",
        json_schema_extra=LOCAL,
    )
    log_to_neptune: bool = Field(False, description="Log to Neptune.", json_schema_extra=LOCAL)
    neptune_username: NeptuneText = Field(None, description="Neptune workspace.", json_schema_extra=LOCAL)
    neptune_project_name: NeptuneText = Field(None, description="Neptune project.", json_schema_extra=LOCAL)
    neptune_api_token: NeptuneText = Field(
        None,
        repr=False,
        description="Neptune API token; the environment variable NEPTUNE_API_TOKEN is the safer place.",
        json_schema_extra=NO_EFFECT,
    )

    # Folders
    data_path: RequiredPath = Field(
        Path("input/stanford"), description="Folder of the images and annotations.", json_schema_extra=LOCAL
    )
    raw_data_path: OptionalPath = Field(
        None, description="Folder of the downloaded archives; null: data_path.", json_schema_extra=LOCAL
    )
    output_path: RequiredPath = Field(
        Path("output"), description="Folder in which each run creates its own.", json_schema_extra=NO_EFFECT
    )

    # Images
    image_size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] = Field(
        description="[height, width] of the resized images, in pixels."
    )
    exif_orientation: Literal["auto"] | bool = Field(
        "auto", description="Rotate images by their EXIF orientation; auto: except those of Stanford Cars."
    )
    convert_to_grayscale: bool = Field(description="One gray channel instead of three color channels.")
    normalize: bool = Field(description="Subtract the mean of each channel and divide by its standard deviation.")
    normalization_params_rgb: Normalization | None = Field(description="Used without convert_to_grayscale.")
    normalization_params_grayscale: Normalization | None = Field(description="Used with convert_to_grayscale.")
    crop_to_bboxes: bool = Field(description="Crop training images to their bounding boxes.")
    erase_background: bool = Field(
        description="With crop_to_bboxes: paste the crop on a white image of the original size."
    )
    shuffle_bounding_boxes: bool = Field(
        False,
        description="With crop_to_bboxes: use another image's box, the fault of the published runs C-10 and C-11.",
    )
    augment_images: bool = Field(description="Apply image_augmentations.")
    image_augmentations: Transforms | None = Field(
        description="Transforms of torchvision.transforms on training images, in order; null: none."
    )
    augment_tensors: bool = Field(description="Apply tensor_augmentations.")
    tensor_augmentations: Transforms | None = Field(
        description="Transforms of torchvision.transforms on training tensors in [0, 1], in order; null: none."
    )

    # Model
    architecture: str = Field(
        description="Name of the architecture.",
        json_schema_extra={"anyOf": [{"enum": list(ARCHITECTURE_LIMITS)}, {"pattern": "^timm/"}]},
    )
    dropout: float | None = Field(ge=0, lt=1, description="Dropout probability before the last layer; null: none.")
    out_channels: int | None = Field(ge=1, description="Width of the last hidden layer, ghost only; null: others.")
    width_multiplier: Annotated[float, Field(gt=0, le=4)] = Field(
        1.0, description="Factor of the other widths, ghost only."
    )

    # Training
    batch_size: int = Field(
        ge=2,
        description="Training images a step on each device; batch norm needs two. A resumed run may have another number of "
        "devices if batch_size × devices × num_nodes stays the same.",
        json_schema_extra=RESUMABLE,
    )
    num_epochs: int = Field(ge=1, le=100_000, description="Maximum number of epochs.", json_schema_extra=RESUMABLE)
    early_stopping_patience: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        "auto",
        description="Epochs without a lower validation loss before training stops; null: never.",
        json_schema_extra=RESUMABLE,
    )
    checkpoint_interval: Annotated[float, Field(gt=0)] | None = Field(
        10,
        description="Minutes between checkpoints within an epoch; null: only at the end of each epoch.",
        json_schema_extra=LOCAL,
    )
    stop_on_nonfinite_loss: bool = Field(
        True, description="End the training when the loss is NaN or infinite.", json_schema_extra=RESUMABLE
    )
    optimizer: str = Field(description="Optimizer of torch.optim.")
    optimizer_params: Parameters | None = Field(description="Parameters of the optimizer.")
    lr_scheduler: str | None = Field(
        description="Scheduler of torch.optim.lr_scheduler, stepped once an epoch; null: constant learning rate."
    )
    lr_scheduler_params: Parameters | None = Field(description="Parameters of the scheduler.")
    loss_function: str = Field(description="LabelSmoothingCrossEntropy or a loss of torch.nn.")
    loss_params: Parameters | None = Field(description="Parameters of the loss.")

    # Input
    cache_path: OptionalPath = Field(
        Path("cache"),
        description="Folder of the cache of resized images; null: decode every image in every epoch.",
        json_schema_extra=LOCAL,
    )
    augmentation_device: Literal["auto", "device", "cpu"] = Field(
        "auto", description="Augment batches on the device, or images one by one on the CPU."
    )
    cache_on_device: Literal["auto"] | bool = Field(
        "auto",
        description="With augmentation on the device: keep the cache in the device's memory.",
        json_schema_extra=LOCAL,
    )

    # Machine
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto",
        description="Processes that load images, for each device; auto: one per core, at most 8.",
        json_schema_extra=LOCAL,
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(
        "auto", description="Kind of device.", json_schema_extra=LOCAL
    )
    devices: (
        Literal["auto"]
        | Annotated[int, Field(ge=1, le=1024)]
        | Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1)]
    ) = Field("auto", description="Number of devices, or a list of their indices.", json_schema_extra=RESUMABLE)
    num_nodes: int = Field(1, ge=1, le=100_000, description="Number of machines.", json_schema_extra=RESUMABLE)
    strategy: Literal["auto", "ddp"] = Field(
        "auto", description="Strategy of training on several devices.", json_schema_extra=LOCAL
    )
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"] = Field(
        "auto", description="Floating-point precision; auto: the fastest that the device supports natively."
    )
    channels_last: bool = Field(True, description="Memory format NHWC: faster on most devices.")
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None, description="Mode of torch.compile; null: eager."
    )

    @property
    def normalization(self) -> Normalization | None:
        """The normalization in effect for the configured channels; None where there is none."""
        params = self.normalization_params_grayscale if self.convert_to_grayscale else self.normalization_params_rgb
        return params if self.normalize else None


def _keys_marked(mark: str, value: bool) -> tuple[str, ...]:
    extras = {name: field.json_schema_extra for name, field in Config.model_fields.items()}
    return tuple(name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(mark) is value)


RESUMABLE_KEYS = _keys_marked("resumable", True)
LOCAL_KEYS = _keys_marked("affects_result", False)  # runs that differ only in these have the same result


def json_schema() -> str:
    """Returns the JSON schema of a configuration file for editors; a file may hold only some of the keys."""
    schema = Config.model_json_schema()
    del schema["required"]
    schema["properties"]["base"] = {
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "description": "File whose keys this one overrides, relative to this one; without it: config.yml.",
    }
    for former, name in RENAMED_KEYS.items():
        schema["properties"][former] = {
            "deprecated": True,
            "description": f"Former name of {name}.",
            "anyOf": [{"type": "string"}, {"type": "null"}],
        }
    return json.dumps(schema, indent=2) + "\n"
