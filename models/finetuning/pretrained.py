"""Pretrained weights: those that timm and torchvision publish, files, and checkpoints of this project."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from models.finetuning.parameter_groups import head_modules, head_names
from models.torchvision_models import TORCHVISION_MODELS
from utils.config.architectures import TIMM
from utils.errors import ConfigError
from utils.nearest import listed
from utils.runs.folder import ABOUT

MAX_LISTED_NAMES = 5
CONTAINERS = ("state_dict", "model")  # keys under which files keep their weights
PREFIXES = ("module.", "model.", "_orig_mod.")  # of names, from DataParallel, LightningModules and torch.compile
# What the loaders of timm and torchvision raise without a network, for a wrong file and for a missing one.
DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights that can be loaded, and how they were trained.

    Attributes:
        source: Where they come from.
        load: Reads or downloads them.
        class_names: Names of their classes; empty if they are not known.
        mean, std: Of each channel, of images in [0, 1]; None if they are not known.
        image: Size and interpolation of the images, as text; empty if they are not known.
    """

    source: str
    load: Callable[[], dict[str, Tensor]]
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image: str = ""


def published_weights(architecture: str, *, image_size: Sequence[int]) -> PretrainedWeights:
    """Returns the weights that timm or torchvision publish for an architecture; nothing is downloaded yet.

    Raises:
        ConfigError: There are none.
    """
    if architecture.startswith(TIMM):
        import timm  # takes seconds to import

        name = architecture.removeprefix(TIMM)
        settings = timm.models.get_pretrained_cfg(name)
        if settings is None or not settings.has_weights:
            raise ConfigError(
                f"timm publishes no weights for {architecture}; timm.list_pretrained() lists those that have"
            )
        size = {"img_size": tuple(image_size)} if settings.fixed_input_size else {}
        return PretrainedWeights(
            f"timm's {settings.hf_hub_id or settings.url or name}",
            lambda: timm.create_model(name, pretrained=True, **size).state_dict(),
            mean=tuple(settings.mean),
            std=tuple(settings.std),
            image=f"{' × '.join(map(str, settings.input_size[1:]))} pixels, {settings.interpolation}",
        )
    if architecture not in TORCHVISION_MODELS:
        raise ConfigError(
            f"there are no published weights for {architecture}; there are for {', '.join(TORCHVISION_MODELS)} and most "
            "timm/ models. Name a file or a run"
        )
    weights = get_model_weights(TORCHVISION_MODELS[architecture].args[0]).DEFAULT
    transforms = weights.transforms()
    return PretrainedWeights(
        f"torchvision's {weights}",
        partial(weights.get_state_dict, progress=False, check_hash=True),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        image=f"{transforms.crop_size[0]} × {transforms.crop_size[0]} pixels, {transforms.interpolation.value}",
    )


def weights_of_file(path: Path, architecture: str, *, image_size: Sequence[int]) -> PretrainedWeights:
    """Returns the weights in a file: .safetensors, or one of torch.save that holds tensors and plain values alone.

    Mean and std are those of the run for a checkpoint of this project, else those of the architecture's published weights.

    Raises:
        ConfigError: The file cannot be read, or holds no weights.
    """
    content = _read(path)
    about = content.get(ABOUT) if isinstance(content.get(ABOUT), dict) else {}
    config = about.get("config") if isinstance(about.get("config"), dict) else {}
    state = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), content)
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if named and (about or len(named) == len(state)):
            state = named
    if not state:
        raise ConfigError(f"{path} holds no weights")
    mean, std, image = None, None, ""
    if normalization := config.get("normalization_params_rgb") if config.get("normalize") else None:
        mean, std = tuple(normalization["mean"]), tuple(normalization["std"])
        image = f"{' × '.join(map(str, config['image_size']))} pixels, bilinear"
    elif not about and (architecture.startswith(TIMM) or architecture in TORCHVISION_MODELS):
        try:
            published = published_weights(architecture, image_size=image_size)
            mean, std, image = published.mean, published.std, published.image
        except ConfigError:  # no published weights, no known values
            pass
    return PretrainedWeights(str(path), lambda: state, tuple(about.get("class_names", ())), mean, std, image)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not loaded"
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen kinds of errors for damaged bytes
        raise ConfigError(f"{path} is empty, damaged or no file of weights ({error!r})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no weights")
    return content


def load_pretrained(model: nn.Module, weights: PretrainedWeights, class_names: Sequence[str]) -> str:
    """Loads the backbone, and the head's rows of classes with the same name; the other rows are new.

    New rows are drawn as torch draws those of a linear layer, from ± 1 / √inputs. timm draws those of EfficientNet from
    ± 1 / √classes, which is larger and disturbs the backbone: measured in docs/results.md.

    Weights of color images fit a model of gray ones: its first convolution gets their sum over the channels.

    Returns:
        What was loaded and what did not fit, in one line.

    Raises:
        ConfigError: The weights cannot be had, or do not fit the backbone.
    """
    try:
        given = weights.load()
    except DOWNLOAD_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"pretrained: {weights.source} cannot be loaded: {reason}. It is downloaded once, from then on no network is "
            "needed; without one, name a file"
        ) from error
    state, head = model.state_dict(), head_names(model)
    first = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()  # timm's name, or several
    stems = [f"{name}.weight" for name in ([first] if isinstance(first, str) else first)]
    for stem in stems or [next(name for name, value in state.items() if value.ndim == 4)]:
        if stem in given and stem in state and state[stem].shape[1] == 1 and given[stem].shape[1] == 3:
            given = given | {stem: given[stem].sum(dim=1, keepdim=True)}
    backbone = [name for name in state.keys() - head if not name.endswith("num_batches_tracked")]
    wrong = sorted(name for name in backbone if name not in given or given[name].shape != state[name].shape)
    if wrong:
        raise ConfigError(
            f"pretrained: {weights.source} does not fit the backbone: {len(wrong)} of {len(backbone)} weights are missing or "
            f"have another shape: {listed(wrong, MAX_LISTED_NAMES)}"
        )
    for module in head_modules(model).values():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    rows = {new: weights.class_names.index(name) for new, name in enumerate(class_names) if name in weights.class_names}
    kept = 0
    for name, value in state.items():
        if name not in head:
            value.copy_(given.get(name, value))
        elif name in given and given[name].shape[1:] == value.shape[1:]:
            kept = len(rows)
            for new, old in rows.items():
                value[new] = given[name][old]
    unused = sorted(given.keys() - state.keys())
    return (
        f"pretrained: {weights.source}: {len(backbone)} weights of the backbone; head: "
        f"{kept} of {len(class_names)} classes kept, {len(class_names) - kept} new"
        + (f"; unused: {listed(unused, MAX_LISTED_NAMES)}" if unused else "")
        + (f"; trained with {weights.image}" if weights.image else "")
    )
