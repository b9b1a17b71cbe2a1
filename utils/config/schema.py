"""The keys of `config.yml`: type, range, default, unit and meaning of each, and whether it may change in a resumed run.

The study's own keys must be set. Keys that this project adds have defaults, which `config.yml` repeats, so that a
configuration of the published project loads unchanged.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from utils.config.architectures import ARCHITECTURE_LIMITS

# Marks of a key; without one it shapes the result and cannot change in a resumed run.
RESUMABLE = {"resumable": True}  # may change in a resumed run
NO_EFFECT = {"affects_result": False}  # how a run is named and logged, where and on what it runs
LOCAL = RESUMABLE | NO_EFFECT
BRANCHABLE = {"branchable": True}  # may change in a branch of a run, as what is resumable

SECRET = "neptune_api_token"  # a key whose value is in no message and in no file
RENAMED_KEYS = {"stanford_data_path": "data_path", "stanford_raw_data_path": "raw_data_path"}  # former name: name


def key(default: Any, description: str, marks: dict[str, Any] | None = None, **limits: Any) -> Any:
    """Describes a key; `...` as default: it must be set."""
    return Field(default, description=description, json_schema_extra=marks, **limits)


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
Size = Annotated[list[Pixels], Field(min_length=2, max_length=2)]
Name = Annotated[str, Field(min_length=1)]
Names = Name | Annotated[list[Name], Field(min_length=1)]
Parameters = dict[str, Any]
Transforms = dict[str, Parameters | None]


class Normalization(BaseModel):
    """Mean and standard deviation of each channel, of images in [0, 1]."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    mean: list[Annotated[float, Field(ge=0, le=1)]]
    std: list[Annotated[float, Field(gt=0, le=1)]]


# Tags in brackets are left out of the places of problems.
PretrainedNormalization = Annotated[
    Annotated[Literal["pretrained"], Tag("[name]")] | Annotated[Normalization, Tag("[values]")],
    Discriminator(lambda value: "[name]" if isinstance(value, str) else "[values]"),
]


class TableParams(BaseModel):
    """How to read a table or Parquet file; null: recognized."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    path: str | None = key(None, "Column of the image paths, or of the images in a Parquet file.")
    label: str | None = key(None, "Column of the class names.")
    split: str | None = key(None, "Column of the split: train, valid or test.")
    box: str | Annotated[list[str], Field(min_length=4, max_length=4)] | None = key(
        None, "Column of four numbers, or four columns."
    )
    box_format: Literal["xyxy", "xywh"] | None = key(None, "Corners, or a corner, width and height.")
    box_unit: Literal["pixels", "fractions"] | None = key(None, "Unit of the boxes.")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = key(None, "Between two columns.")


class Config(BaseModel):
    """A complete, valid configuration."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=(), title="config.yml"
    )

    # Run
    experiment_id: OptionalText = key(None, "Name of the published experiment, such as C-50.", NO_EFFECT)
    description: OptionalText = key(None, "Purpose of the run, in one line.", NO_EFFECT)
    tags: list[str] = key([], "Words to find the run by.", NO_EFFECT)
    seed: int = key(0, "Seed of all random numbers.", ge=0, lt=2**32)
    deterministic: bool = key(False, "Use deterministic kernels only: bit-equal results on a GPU too, but slower.")

    # Logging
    loglevel: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = key("INFO", "Minimum log level.", LOCAL)
    logging_dir: OptionalPath = key(None, "Folder of the log files; null: the run's folder.", LOCAL)
    trackers: list[Literal["mlflow", "tensorboard", "wandb"]] | None = key(
        ["mlflow"], "Experiment trackers; mlflow is the local dashboard. null: only the run's folder.", LOCAL
    )
    mlflow_artifacts: bool = key(
        False, "Log best.ckpt at the end of a run, and the files of export.py, as MLflow artifacts.", LOCAL
    )
    log_to_neptune: bool = key(False, "Log to Neptune.", LOCAL)
    neptune_username: NeptuneText = key(None, "Neptune workspace.", LOCAL)
    neptune_project_name: NeptuneText = key(None, "Neptune project.", LOCAL)
    neptune_api_token: NeptuneText = key(
        None, "Neptune API token; the environment variable NEPTUNE_API_TOKEN is safer.", LOCAL, repr=False
    )

    # Folders
    data_path: RequiredPath = key(Path("input/stanford"), "Folder of the images and annotations.", LOCAL)
    raw_data_path: OptionalPath = key(None, "Folder of the downloaded archives; null: data_path.", LOCAL)
    extract_path: OptionalPath = key(
        None,
        "Folder in which archives of a read-only data_path are extracted; null: extracted/ beside cache_path.",
        LOCAL,
    )
    dataset: Literal["auto", "stanford_cars", "parquet", "table", "class_folders"] = key(
        "auto", "Kind of the data set; auto: what is found in data_path.", LOCAL
    )
    table_params: TableParams | None = key(None, "How to read a table or Parquet file; null: recognized.", LOCAL)
    output_path: RequiredPath = key(Path("output"), "Folder in which each run creates its own.", NO_EFFECT)

    # Splits
    validation_fraction: float | None = key(
        None,
        "Share of the training images that becomes the validation split; null: the data set's own validation or test split.",
        gt=0,
        lt=1,
    )
    test_fraction: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] | None = key(
        "auto",
        "With validation_fraction, share that becomes the test split of a data set without one; auto: as validation_fraction; "
        "null: none.",
    )
    split_seed: int | None = key(
        None,
        "With validation_fraction, seed of the split, which repeats with other seeds have in common; null: seed.",
        ge=0,
        lt=2**32,
    )
    near_duplicate_distance: int | None = key(
        4,
        "With validation_fraction, images whose perceptual hashes differ in at most so many of 64 bits stay in one split; "
        "null: identical files only.",
        ge=0,
        le=16,
    )

    # Images
    image_size: Size = key(..., "[height, width] of the images that the model is trained on, in pixels.")
    resize_size: Size | None = key(
        None,
        "[height, width] of the training images before their augmentations crop them to image_size; null: image_size.",
    )
    test_image_size: Size | None = key(
        None, "[height, width] in validation, evaluation, prediction and export; null: image_size."
    )
    aspect: Literal["squash", "crop", "pad"] = key(
        "squash",
        "How an image of another aspect ratio is resized: squash it, crop it centrally, or pad it with black.",
    )
    flip_at_test: bool = key(
        False,
        "In validation, evaluation, prediction and export, the mean of the logits of the image and its mirror image.",
    )
    exif_orientation: Literal["auto"] | bool = key(
        "auto", "Rotate images by their EXIF orientation; auto: except those of Stanford Cars."
    )
    convert_to_grayscale: bool = key(..., "One gray channel instead of three color channels.")
    normalize: bool = key(..., "Subtract the mean of each channel and divide by its standard deviation.")
    normalization_params_rgb: PretrainedNormalization | None = key(
        ..., "Used without convert_to_grayscale; pretrained: what the pretrained weights were trained with."
    )
    normalization_params_grayscale: Normalization | None = key(..., "Used with convert_to_grayscale.")
    crop_to_bboxes: bool = key(..., "Crop training images to their bounding boxes.")
    erase_background: bool = key(..., "With crop_to_bboxes: paste the crop on a white image of the original size.")
    shuffle_bounding_boxes: bool = key(
        False, "With crop_to_bboxes: use another image's box, the fault of the published runs C-10 and C-11."
    )
    augment_images: bool = key(..., "Apply image_augmentations.", BRANCHABLE)
    image_augmentations: Transforms | None = key(
        ..., "torchvision.transforms on training images, in order; null: none.", BRANCHABLE
    )
    augment_tensors: bool = key(..., "Apply tensor_augmentations.", BRANCHABLE)
    tensor_augmentations: Transforms | None = key(
        ..., "torchvision.transforms on training tensors in [0, 1], in order; null: none.", BRANCHABLE
    )

    # Model
    architecture: str = key(
        ..., "Name of the architecture.", {"anyOf": [{"enum": list(ARCHITECTURE_LIMITS)}, {"pattern": "^timm/"}]}
    )
    dropout: float | None = key(..., "Dropout probability before the last layer; null: none.", ge=0, lt=1)
    out_channels: int | None = key(..., "Width of the last hidden layer, ghost only; null: others.", ge=1)
    width_multiplier: float = key(1.0, "Factor of the other widths, ghost only.", gt=0, le=4)
    drop_path: float | None = key(
        None, "Maximum probability of stochastic depth; null: the architecture's default.", ge=0, lt=1
    )
    pretrained: Literal[True] | Annotated[str, Field(min_length=1)] | None = key(
        None, "Initial weights: True: those that timm or torchvision publish; a file; a run; null: random."
    )

    # Training
    batch_size: int = key(
        ...,
        "Training images a step on each device. A resumed run keeps batch_size × devices × num_nodes.",
        RESUMABLE,
        ge=2,  # batch norm
    )
    num_epochs: int = key(..., "Maximum number of epochs.", RESUMABLE, ge=1, le=100_000)
    early_stopping_patience: Literal["auto"] | Annotated[int, Field(ge=1)] | None = key(
        "auto", "Epochs without a lower validation loss before training stops; null: never.", RESUMABLE
    )
    best_metric: Literal["valid_loss", "valid_acc", "valid_top5_acc"] = key(
        "valid_loss", "Metric whose best epoch best.ckpt keeps; early stopping follows the validation loss in any case."
    )
    checkpoint_interval: float | None = key(
        10, "Minutes between checkpoints within an epoch; null: only at the end of each epoch.", LOCAL, gt=0
    )
    keep_checkpoints: list[Annotated[int, Field(ge=1, le=100_000)]] | None = key(
        None, "Numbers of epochs after which a checkpoint is kept, to branch other runs from; null: none.", LOCAL
    )
    stop_on_nonfinite_loss: bool = key(True, "End the training when the loss is NaN or infinite.", RESUMABLE)
    freeze_epochs: int = key(0, "First epochs in which only the head is trained.", ge=0, le=100_000)
    accumulate_batches: int = key(1, "Batches whose gradients make one step.", ge=1, le=100_000)
    optimizer: str = key(..., "Optimizer of torch.optim.")
    optimizer_params: Parameters | None = key(..., "Parameters of the optimizer.")
    head_lr_factor: float = key(1.0, "Factor of the head's learning rate.", gt=0, le=1000)
    layer_decay: float = key(1.0, "Factor of the learning rate from each layer to the one before it.", gt=0, le=1)
    decay_norm_and_bias: bool = key(True, "Weight decay of norms and biases too.")
    gradient_clip_norm: float | None = key(None, "Maximum norm of all gradients together; null: no clipping.", gt=0)
    ema_decay: float | None = key(
        None,
        "Decay, for each step, of the averaged weights that are validated and kept; null: no averaging.",
        gt=0,
        lt=1,
    )
    lr_scheduler: str | None = key(
        ..., "Scheduler of torch.optim.lr_scheduler; null: constant learning rate.", BRANCHABLE
    )
    lr_scheduler_params: Parameters | None = key(..., "Parameters of the scheduler; lengths in epochs.", BRANCHABLE)
    scheduler_step: Literal["epoch", "batch"] = key(
        "epoch", "Step the scheduler once an epoch, or after every batch.", BRANCHABLE
    )
    warmup_epochs: float = key(
        0,
        "Epochs over which the learning rate rises linearly, step by step, to that of the scheduler.",
        ge=0,
        le=100_000,
    )
    loss_function: str = key(..., "LabelSmoothingCrossEntropy or a loss of torch.nn.")
    loss_params: Parameters | None = key(..., "Parameters of the loss.")
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = key(
        None, "Weights of the classes in the loss: balanced, or {class name: weight}, 1 for the others; null: equal."
    )
    mixup_alpha: float | None = key(
        None, "Parameter of the beta distribution of mixup's shares; null: no mixup.", BRANCHABLE, gt=0, le=1000
    )
    cutmix_alpha: float | None = key(
        None, "Parameter of the beta distribution of CutMix's shares; null: no CutMix.", BRANCHABLE, gt=0, le=1000
    )
    mix_probability: float = key(
        1.0, "Probability of a batch being mixed, with mixup_alpha or cutmix_alpha.", BRANCHABLE, gt=0, le=1
    )
    mix_off_epochs: int = key(0, "Last epochs in which no batch is mixed.", BRANCHABLE, ge=0, le=100_000)
    sampler: Literal["random", "balanced"] = key(
        "random", "Each training image once an epoch, or as many draws an epoch with equal chances for all classes."
    )

    # Targets
    teacher: Names | None = key(
        None, "Runs whose predictions are targets too: the mean of their probabilities; null: labels alone.", RESUMABLE
    )
    distillation_temperature: float = key(2.0, "Divisor of the logits of teacher and student.", gt=0, le=100)
    distillation_weight: float = key(
        0.9, "Weight of the teacher's targets in the loss; the labels have the rest.", gt=0, le=1
    )
    auxiliary_targets: Annotated[list[Name], Field(min_length=1)] | None = key(
        None, "Groupings of the classes that are learned too: make, body_type, or a table; null: classes alone."
    )
    auxiliary_weight: float = key(0.2, "Weight of the loss of each auxiliary target.", gt=0, le=100)

    # Input
    cache_path: OptionalPath = key(
        Path("cache"), "Folder of the cache of resized images; null: decode every image in every epoch.", LOCAL
    )
    augmentation_device: Literal["auto", "device", "cpu"] = key(
        "auto", "Augment batches on the device, or images one by one on the CPU."
    )
    cache_on_device: Literal["auto"] | bool = key(
        "auto", "With augmentation on the device: keep the cache in the device's memory.", LOCAL
    )

    # Machine
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = key(
        "auto", "Processes that load images, for each device; auto: one per core, at most 8.", LOCAL
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = key("auto", "Kind of device.", LOCAL)
    devices: (
        Literal["auto"]
        | Annotated[int, Field(ge=1, le=1024)]
        | Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1)]
    ) = key("auto", "Number of devices, or a list of their indices.", RESUMABLE)
    num_nodes: int = key(1, "Number of machines.", RESUMABLE, ge=1, le=100_000)
    strategy: Literal["auto", "ddp"] = key("auto", "Strategy of training on several devices.", LOCAL)
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"] = key(
        "auto", "Floating-point precision; auto: the fastest that the device supports natively."
    )
    channels_last: bool = key(True, "Memory format NHWC: faster on most devices.")
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = key(
        None, "Mode of torch.compile; null: eager."
    )

    @property
    def test_size(self) -> tuple[int, int]:
        """(height, width) of the images in validation, evaluation, prediction and export."""
        height, width = self.test_image_size or self.image_size
        return height, width

    @property
    def normalization(self) -> Normalization | None:
        """The normalization in effect for the configured channels; None where there is none."""
        params = self.normalization_params_grayscale if self.convert_to_grayscale else self.normalization_params_rgb
        return params if self.normalize else None

    @property
    def stopping_patience(self) -> int | None:
        """Epochs without a lower validation loss after which training stops; None for never.

        The study waited 15 epochs, with ReduceLROnPlateau three times the scheduler's own patience (torch's default: 10).
        """
        if self.early_stopping_patience != "auto":
            return self.early_stopping_patience
        if self.lr_scheduler == "ReduceLROnPlateau":
            return max(1, 3 * (self.lr_scheduler_params or {}).get("patience", 10))
        return 15


def _keys_marked(mark: str, value: bool) -> tuple[str, ...]:
    extras = {name: field.json_schema_extra for name, field in Config.model_fields.items()}
    return tuple(name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(mark) is value)


RESUMABLE_KEYS = _keys_marked("resumable", True)
BRANCHABLE_KEYS = (*_keys_marked("branchable", True), *RESUMABLE_KEYS)
LOCAL_KEYS = _keys_marked("affects_result", False)  # runs that differ only in these have the same result


def json_schema() -> str:
    """Returns the JSON schema of a configuration file for editors; a file may hold only some of the keys."""
    schema = Config.model_json_schema()
    del schema["required"]
    base = "File whose keys this one overrides, relative to this one; without it: config.yml."
    schema["properties"]["base"] = {"type": ["string", "null"], "description": base}
    for former, name in RENAMED_KEYS.items():
        schema["properties"][former] = {"type": ["string", "null"], "description": f"Use {name}.", "deprecated": True}
    return json.dumps(schema, indent=2) + "\n"
