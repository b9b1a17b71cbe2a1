"""The keys of `config.yml`: their types, ranges and meaning.

The study's own keys keep their names and must be given. The keys that this project adds have defaults, which
`config.yml` repeats, so that a configuration written for the published project loads unchanged.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from utils.config.architectures import ARCHITECTURE_LIMITS


def _empty_to_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _placeholder_to_none(value: Any) -> Any:
    """Takes the published template's `<neptune.ai API token>` and an empty text for what they are: nothing."""
    return None if isinstance(value, str) and value.startswith("<") and value.endswith(">") else _empty_to_none(value)


def _text_to_path(value: Any) -> Any:
    try:
        return Path(value).expanduser() if isinstance(value, str) and value else value
    except RuntimeError as error:  # ~name of a user that this machine does not know
        raise ValueError(f"a folder that can be found: {error}") from error


OptionalText = Annotated[str | None, BeforeValidator(_empty_to_none)]
NeptuneText = Annotated[str | None, BeforeValidator(_placeholder_to_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_text_to_path), BeforeValidator(_placeholder_to_none)]
RequiredPath = Annotated[Path, BeforeValidator(_text_to_path)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Parameters = dict[str, Any]


class Normalization(BaseModel):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    mean: list[Annotated[float, Field(ge=0, le=1)]]
    std: list[Annotated[float, Field(gt=0, le=1)]]


class Config(BaseModel):
    """A whole, valid configuration."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=(), title="config.yml"
    )

    # The run
    experiment_id: OptionalText = Field(None, description="Name of the published experiment, such as C-50.")
    description: OptionalText = Field(None, description="What this run is about, in one line.")
    tags: list[str] = Field([], description="Words to find the run by.")
    seed: int = Field(0, ge=0, lt=2**32, description="Start of all random numbers.")
    deterministic: bool = Field(False, description="Only deterministic kernels: bit-equal on a GPU too, but slower.")

    # Logging
    trackers: list[Literal["mlflow", "tensorboard", "wandb"]] | None = Field(
        ["mlflow"], description="Where runs are logged besides their folders; mlflow is the local dashboard."
    )
    loglevel: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        description="Least level of messages shown."
    )
    logging_dir: OptionalPath = Field(description="Folder of the log files; null: the run's own folder.")
    log_to_neptune: bool = Field(description="Whether to log to Neptune.")
    neptune_username: NeptuneText = Field(description="Neptune workspace.")
    neptune_project_name: NeptuneText = Field(description="Neptune project.")
    neptune_api_token: NeptuneText = Field(
        None, repr=False, description="Better given as environment variable NEPTUNE_API_TOKEN."
    )

    # Folders
    stanford_raw_data_path: OptionalPath = Field(
        None, description="Folder of the downloaded archives; null: they lie in stanford_data_path."
    )
    stanford_data_path: RequiredPath = Field(description="Folder of the photos and annotations.")
    output_path: RequiredPath = Field(description="Folder under which each run makes its own.")

    # Images
    image_size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] = Field(
        description="[height, width], pixels."
    )
    convert_to_grayscale: bool = Field(description="One gray channel instead of three.")
    normalize: bool = Field(description="Subtract the mean and divide by the standard deviation.")
    normalization_params_rgb: Normalization | None = Field(description="Used without convert_to_grayscale.")
    normalization_params_grayscale: Normalization | None = Field(description="Used with convert_to_grayscale.")
    crop_to_bboxes: bool = Field(description="Cut training photos to their bounding boxes.")
    erase_background: bool = Field(
        description="With crop_to_bboxes: paste the cut-out on white at the photo's own size."
    )
    shuffle_bounding_boxes: bool = Field(
        False, description="Cut each photo by another photo's box: the fault of the published runs C-10 and C-11."
    )
    augment_images: bool = Field(description="Whether image_augmentations are applied.")
    image_augmentations: dict[str, Parameters | None] | None = Field(
        description="torchvision.transforms on training images, in order."
    )
    augment_tensors: bool = Field(description="Whether tensor_augmentations are applied.")
    tensor_augmentations: dict[str, Parameters | None] | None = Field(
        description="torchvision.transforms on training tensors in [0, 1], in order."
    )

    # Network
    architecture: str = Field(
        description="Network.",
        json_schema_extra={"anyOf": [{"enum": list(ARCHITECTURE_LIMITS)}, {"pattern": "^timm/"}]},
    )
    dropout: float | None = Field(ge=0, lt=1, description="Probability before the last layer.")
    out_channels: int | None = Field(ge=1, description="Width of the last hidden layer of ghost.")

    width_multiplier: Annotated[float, Field(gt=0, le=4)] = Field(1.0, description="Factor of ghost's other widths.")

    # Training
    batch_size: int = Field(ge=2, description="Training images a step; batch norm needs two.")
    num_epochs: int = Field(ge=1, le=100_000, description="Most epochs.")
    early_stopping_patience: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        "auto", description="Epochs without a lower validation loss before training stops; null: never."
    )
    checkpoint_interval: Annotated[float, Field(gt=0)] | None = Field(
        10, description="Minutes between two checkpoints within an epoch; null: only at the end of each epoch."
    )
    stop_on_nonfinite_loss: bool = Field(True, description="Whether an infinite or undefined loss ends the training.")
    optimizer: str = Field(description="Optimizer of torch.optim.")
    optimizer_params: Parameters | None = Field(description="Its parameters.")
    lr_scheduler: str | None = Field(description="Scheduler of torch.optim.lr_scheduler, stepped each epoch.")
    lr_scheduler_params: Parameters | None = Field(description="Its parameters.")
    loss_function: str = Field(description="LabelSmoothingCrossEntropy or a loss of torch.nn.")
    loss_params: Parameters | None = Field(description="Its parameters.")

    # Input
    cache_path: OptionalPath = Field(
        Path("cache"), description="Folder in which resized photos are kept, each decoded once; null: decode each time."
    )
    cache_on_device: Literal["auto"] | bool = Field(
        "auto", description="With whole batches: keep the cache on the device."
    )
    augmentation_device: Literal["auto", "device", "cpu"] = Field(
        "auto", description="Augment whole batches on the device, or photo by photo in num_workers processes."
    )

    # Machine
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto", description="Processes that read photos; auto: one a core, at most 8."
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = Field("auto", description="Kind of device.")
    devices: (
        Literal["auto"]
        | Annotated[int, Field(ge=1, le=1024)]
        | Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1)]
    ) = Field("auto", description="How many devices, or their numbers.")
    num_nodes: int = Field(1, ge=1, le=100_000, description="Machines.")
    strategy: Literal["auto", "ddp"] = Field("auto", description="How several devices work together.")
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"] = Field(
        "auto", description="Number format of the training; auto: the fastest that the device has natively."
    )
    channels_last: bool = Field(True, description="Memory layout NHWC: the same network, faster.")
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None, description="Mode of torch.compile, for batches of full size; null: not compiled."
    )

    @property
    def normalization(self) -> Normalization | None:
        """The normalization in effect for the configured channels; None where there is none."""
        params = self.normalization_params_grayscale if self.convert_to_grayscale else self.normalization_params_rgb
        return params if self.normalize else None


def json_schema() -> str:
    """Returns the JSON schema of a configuration file, for editors; such a file may hold only some of the keys."""
    schema = Config.model_json_schema()
    del schema["required"]
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":  # python -m utils.config.schema > config.schema.json
    print(json_schema(), end="")
