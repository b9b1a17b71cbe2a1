"""Loads a trained model with all it needs from its checkpoint: weights, configuration, class names, transforms."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assembly import build_classifier, build_pipelines, image_shape
from datamodules.images import read_image
from datamodules.transforms import Transform
from deployment.calibration import Calibration, load_calibration
from models.classifier import Classifier
from training.checkpoints import ABOUT, file_version, read_checkpoint
from utils.config import Config, Problems, load_config, parse_config
from utils.config.architectures import image_size_problem
from utils.config.yaml_source import SourcedMapping
from utils.errors import ConfigError, RunError
from utils.files import file_digest
from utils.nearest import listed
from utils.runs import BEST, resolve_checkpoint

MAX_LISTED_NAMES = 5  # of missing weights


class FlipAverage(nn.Module):
    """Returns the mean of a model's logits of each image and of its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(torch.cat([images, images.flip(-1)])).unflatten(0, (2, -1)).mean(0)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes:
        path: The checkpoint.
        config: The configuration of the training.
        class_names: Names of the labels 0, 1, …
        metrics: The training's metrics of exactly these weights; empty for a checkpoint from within an epoch.
        split_digest: Of the split that it was trained on, where the configuration made one.
        classifier: On the CPU, in evaluation mode.
        transform: From an RGB image to a tensor (C, H, W), as for validation images.
        sha256: Of the checkpoint's file.
        calibration: Temperature and threshold of these weights; None before evaluate.py has fitted them, and with other
            settings of the test than the run's.
        other_settings: Those, such as "160x160 flip"; empty for the run's own.
    """

    path: Path
    config: Config
    class_names: tuple[str, ...]
    metrics: dict[str, float]
    split_digest: str | None
    classifier: Classifier
    transform: Transform
    sha256: str
    calibration: Calibration | None = None
    other_settings: str = ""

    @property
    def folder(self) -> Path:
        """The run's folder, or the checkpoint's folder where it is outside a run."""
        return _folder_of(self.path)

    def load_image(self, path: Path, *, upright: bool) -> Tensor:
        """Returns the whole image as the model's input (C, H, W); `upright` applies its EXIF orientation."""
        return self.transform(read_image(path, upright=upright))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits (N, classes) of images (N, C, H, W), computed on the model's device, returned on the CPU.

        With flip_at_test they are the mean over each image and its mirror image.
        """
        return self.classifier.test_logits(images.to(self.classifier.device, self.classifier.dtype)).float().cpu()

    def exportable(self) -> nn.Module:
        """Returns a copy of the model for the CPU, 32-bit, that computes what `logits` does."""
        model = copy.deepcopy(self.classifier.model).float().eval().cpu().to(memory_format=torch.contiguous_format)
        return FlipAverage(model).eval() if self.config.flip_at_test else model

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probabilities (N, classes) of logits, by the temperature where there is a calibration."""
        return self.calibration.probabilities(logits) if self.calibration else logits.softmax(dim=1)


def _folder_of(checkpoint: Path) -> Path:
    return checkpoint.parents[1] if checkpoint.parent.name == BEST.parent.name else checkpoint.parent


def load_trained(name: str, *, image_size: Sequence[int] | None = None, flip: bool = False) -> TrainedModel:
    """Loads the checkpoint or run `name`, as `utils.runs.resolve_checkpoint` finds it.

    Args:
        name: Of the checkpoint or run.
        image_size: In place of the run's test_image_size.
        flip: Whether to take the mean over each image and its mirror image, whatever the run's flip_at_test.

    Raises:
        ConfigError: There is no such checkpoint or run, or the model does not take the image size.
        RunError: The checkpoint is damaged, or from another program or version.
    """
    path = resolve_checkpoint(name, load_config().output_path)
    checkpoint, digest = _read_with_digest(path)
    about = checkpoint[ABOUT]
    class_names = about.get("class_names")
    if not isinstance(class_names, list) or not class_names or not all(isinstance(name, str) for name in class_names):
        raise RunError(f"{path}: its {ABOUT!r} part has no class_names")
    try:
        config = own = _read_config(about.get("config"))
        if image_size:
            config = config.model_copy(update={"test_image_size": list(image_size)})
        if flip:
            config = config.model_copy(update={"flip_at_test": True})
        problems = Problems(config)
        with problems.of("architecture"):
            classifier = build_classifier(config, num_classes=len(class_names))
            _, transform = build_pipelines(config)
        problems.raise_any()
    except ConfigError as error:
        raise RunError(f"{path} cannot be used by this version of the project. {error}") from error
    _load_weights(classifier, checkpoint["state_dict"], path)
    others = []
    if config.test_size != own.test_size:
        _try_size(classifier, config)
        others.append("x".join(map(str, config.test_size)))
    if config.flip_at_test != own.flip_at_test:
        others.append("flip")
    metrics = about.get("metrics")
    if metrics is None or _is_within_an_epoch(checkpoint):
        metrics = {}
    if not isinstance(metrics, dict) or not all(isinstance(value, (int, float)) for value in metrics.values()):
        raise RunError(f"{path}: its metrics are not numbers")
    return TrainedModel(
        path=path,
        config=config,
        class_names=tuple(class_names),
        metrics=dict(metrics),
        split_digest=about.get("split_digest"),
        classifier=classifier.eval(),
        transform=transform,
        sha256=digest,
        calibration=None if others else load_calibration(_folder_of(path), path, digest),
        other_settings=" ".join(others),
    )


def _read_with_digest(path: Path) -> tuple[dict[str, Any], str]:
    """Returns a checkpoint and the SHA-256 of its file, which a training may be replacing."""
    while True:
        before = file_version(path)
        checkpoint, digest = read_checkpoint(path), file_digest(path)
        if file_version(path) == before:
            return checkpoint, digest


def _try_size(classifier: Classifier, config: Config) -> None:
    problem = image_size_problem(config.architecture, config.test_size)
    try:
        with torch.inference_mode():
            classifier.eval()(torch.zeros(1, *image_shape(config, testing=True), dtype=classifier.dtype))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        problem = problem or f"{config.architecture} does not take it: {str(error).splitlines()[0]}"
    if problem:
        raise ConfigError(f"--image-size {' '.join(map(str, config.test_size))}: {problem}")


def _read_config(values: Any) -> Config:
    if not isinstance(values, dict):
        raise ConfigError("Its configuration is missing")
    source = SourcedMapping()
    try:
        source.values = json.loads(json.dumps(values))  # plain values only, as in a file
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"Its configuration is invalid: {error}") from error
    return parse_config(source)


def _load_weights(classifier: Classifier, weights: Any, path: Path) -> None:
    expected = classifier.state_dict()
    found = weights if isinstance(weights, dict) and all(isinstance(name, str) for name in weights) else {}
    for kind, names in (("lacks", expected.keys() - found.keys()), ("has unknown", found.keys() - expected.keys())):
        if names:
            some = listed(sorted(names), MAX_LISTED_NAMES)
            raise RunError(f"{path} {kind} weights ({len(names)} of {len(expected)}): {some}")
    if not all(isinstance(weight, Tensor) for weight in found.values()):
        raise RunError(f"{path}: not all of its weights are tensors")
    if any(weight.dtype == torch.float64 for weight in found.values()):
        classifier.double()  # trained with precision 64-true
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path}: its weights do not fit its own configuration: {error}") from error
    for name, weight in classifier.state_dict().items():
        if not weight.isfinite().all():
            raise RunError(
                f"{path}: its weight {name} is NaN or infinite, because the training diverged. "
                "Use an earlier checkpoint, or train again with a lower optimizer_params.lr"
            )


def _is_within_an_epoch(checkpoint: dict[str, Any]) -> bool:
    """Returns whether the weights in `checkpoint` were trained further after its metrics were measured."""
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        return int(epochs["ready"]) > int(epochs["processed"])
    except (LookupError, RuntimeError, TypeError, ValueError):  # without the training's state
        return False
