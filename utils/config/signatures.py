"""The optimizers, schedulers, losses and transforms of the installed torch and torchvision, and the parameters of each.

Read from their source files without importing them, which takes seconds: a wrong name or parameter is reported at once.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from utils.machine import PROJECT


class Signature(NamedTuple):
    """The parameters of a constructor, without those that the trainer passes (such as `params`).

    Attributes:
        required: Parameters without a default.
        optional: Parameters with a default.
        choices: The values of each parameter that is an enumeration.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    choices: dict[str, list[str]]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


# Classes of torch and torchvision that a configuration cannot use, and why.
OTHER_TASKS = (
    "BCELoss", "BCEWithLogitsLoss", "CTCLoss", "CosineEmbeddingLoss", "GaussianNLLLoss", "HingeEmbeddingLoss", "HuberLoss",
    "KLDivLoss", "L1Loss", "MSELoss", "MarginRankingLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss",
    "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss", "TripletMarginLoss", "TripletMarginWithDistanceLoss",
)  # fmt: skip
UNSUPPORTED = {
    "SparseAdam": "it needs sparse gradients, which these models do not have",
    "Muon": "it takes matrices only; these models have vectors and convolutions",
    "SequentialLR": "it takes other schedulers",
    "ChainedScheduler": "it takes other schedulers",
    "Compose": "the configured transforms are composed already",
    "Lambda": "a configuration cannot hold functions",
    "RandomApply": "it takes other transforms; most transforms have a probability p",
    "RandomChoice": "it takes other transforms",
    "RandomOrder": "it takes other transforms",
    "RandomTransforms": "it is a base class",
    "AutoAugmentPolicy": "it is a parameter of AutoAugment, not a transform",
    "FiveCrop": "it returns several images",
    "TenCrop": "it returns several images",
    "ToTensor": "images become tensors between image_augmentations and tensor_augmentations",
    "PILToTensor": "images become tensors between image_augmentations and tensor_augmentations",
    "ToPILImage": "image_augmentations take PIL images, tensor_augmentations take tensors",
    "NLLLoss": "it takes log-probabilities; use CrossEntropyLoss, the same on logits",
    **dict.fromkeys(OTHER_TASKS, "it does not take logits (N, classes) and labels (N,)"),
    "LinearTransformation": "its parameters are tensors, which a configuration cannot hold",
}


@functools.cache
def optimizers() -> dict[str, Signature]:
    """Returns the optimizers of `torch.optim`."""
    return _signatures(_package("torch", "optim").glob("*.py"), base="Optimizer", excluded=("params",))


@functools.cache
def lr_schedulers() -> dict[str, Signature]:
    """Returns the schedulers of `torch.optim.lr_scheduler`."""
    files = [_package("torch", "optim") / "lr_scheduler.py"]
    return _signatures(files, base="LRScheduler", excluded=("optimizer", "last_epoch", "verbose"))


@functools.cache
def losses() -> dict[str, Signature]:
    """Returns the losses of this project and of `torch.nn`."""
    own = _signatures((PROJECT / "losses").glob("*.py"), base="CrossEntropyLoss")
    deprecated = ("size_average", "reduce")
    return own | _signatures([_package("torch", "nn", "modules") / "loss.py"], base="_Loss", excluded=deprecated)


@functools.cache
def transforms() -> dict[str, Signature]:
    """Returns the transforms of `torchvision.transforms`."""
    folder = _package("torchvision", "transforms")
    return _signatures([folder / name for name in ("functional.py", "autoaugment.py", "transforms.py")], base=None)


def _package(name: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed: pip install -r requirements.txt", name=name)
    return Path(spec.submodule_search_locations[0], *parts)


def _signatures(files: Iterable[Path], *, base: str | None, excluded: tuple[str, ...] = ()) -> dict[str, Signature]:
    """Returns the constructors of the public subclasses of `base` (None: of all classes but enumerations) in `files`."""
    classes = {
        node.name: node
        for file in sorted(files)
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> list[str]:
        bases = [ast.unparse(each).rpartition(".")[2] for each in classes[name].bases] if name in classes else []
        return bases + [older for parent in bases for older in ancestors(parent)]

    enums = {name: _enum_values(node) for name, node in classes.items() if "Enum" in ancestors(name)}

    def signature(name: str) -> Signature:
        for candidate in [name, *ancestors(name)]:
            for member in classes[candidate].body if candidate in classes else []:
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    return _signature(member.args, excluded, enums)
        return Signature((), (), {})

    return {
        name: signature(name)
        for name in sorted(classes)
        if not name.startswith("_") and (base in ancestors(name) if base else name not in enums)
    }


def _enum_values(node: ast.ClassDef) -> list[str]:
    return [
        item.value.value for item in node.body if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


def _signature(arguments: ast.arguments, excluded: tuple[str, ...], enums: dict[str, list[str]]) -> Signature:
    positional = [*arguments.posonlyargs, *arguments.args][1:]  # without self
    no_default = len(positional) - len(arguments.defaults)
    defaults = dict(zip(positional, [None] * no_default + arguments.defaults, strict=True))
    defaults |= zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    given = {argument.arg: default for argument, default in defaults.items() if argument.arg not in excluded}
    return Signature(
        required=tuple(name for name, default in given.items() if default is None),
        optional=tuple(name for name, default in given.items() if default is not None),
        choices={
            name: enums[enum]
            for name, default in given.items()
            if isinstance(default, ast.Attribute) and (enum := ast.unparse(default.value)) in enums
        },
    )
