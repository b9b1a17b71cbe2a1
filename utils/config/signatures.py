"""Which optimizers, schedulers, losses and transforms the installed torch and torchvision have, and what each takes.

Read from their source files, not by importing them: a misspelt name or parameter is answered at once, for the very
release that is installed.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from utils.machine import PROJECT


class Signature(NamedTuple):
    """The parameters of a constructor, without those that the trainer itself passes (such as `params`)."""

    required: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


# Named in torch, but not to be had from a configuration, and why.
OTHER_TASKS = (
    "BCELoss", "BCEWithLogitsLoss", "CTCLoss", "CosineEmbeddingLoss", "GaussianNLLLoss", "HingeEmbeddingLoss", "HuberLoss",
    "KLDivLoss", "L1Loss", "MSELoss", "MarginRankingLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss",
    "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss", "TripletMarginLoss", "TripletMarginWithDistanceLoss",
)  # fmt: skip
UNUSABLE = {
    "SparseAdam": "it needs sparse gradients, which these networks do not have",
    "Muon": "it takes matrices only, and these networks have vectors and convolutions too",
    "SequentialLR": "it is made of other schedulers, which a configuration cannot build",
    "ChainedScheduler": "it is made of other schedulers, which a configuration cannot build",
    "Compose": "the configured list is a composition already",
    "Lambda": "a configuration is not executed",
    "RandomApply": "it is made of other transforms; most transforms have a probability p of their own",
    "RandomChoice": "it is made of other transforms, which a configuration cannot build",
    "RandomOrder": "it is made of other transforms, which a configuration cannot build",
    "RandomTransforms": "it is a base class",
    "AutoAugmentPolicy": "it is a choice for AutoAugment, not a transform",
    "FiveCrop": "it makes several images of one",
    "TenCrop": "it makes several images of one",
    "ToTensor": "every image becomes a tensor between image_augmentations and tensor_augmentations",
    "PILToTensor": "every image becomes a tensor between image_augmentations and tensor_augmentations",
    "ToPILImage": "image_augmentations see PIL images, tensor_augmentations see tensors",
    "NLLLoss": "it takes log-probabilities; CrossEntropyLoss is the same on logits",
    **dict.fromkeys(OTHER_TASKS, "it is for another task: it does not take logits (N, classes) with labels (N,)"),
    "LinearTransformation": "its parameters are tensors, which a configuration cannot hold",
}


@functools.cache
def optimizers() -> dict[str, Signature]:
    """Returns the optimizers of `torch.optim`."""
    return _subclasses(_package("torch", "optim").glob("*.py"), base="Optimizer", given=("params",))


@functools.cache
def lr_schedulers() -> dict[str, Signature]:
    """Returns the schedulers of `torch.optim.lr_scheduler`."""
    files = [_package("torch", "optim") / "lr_scheduler.py"]
    return _subclasses(files, base="LRScheduler", given=("optimizer", "last_epoch", "verbose"))


@functools.cache
def losses() -> dict[str, Signature]:
    """Returns the losses of this project and of `torch.nn`."""
    own = _subclasses((PROJECT / "losses").glob("*.py"), base="Module", given=())
    deprecated = ("size_average", "reduce")
    return own | _subclasses([_package("torch", "nn", "modules") / "loss.py"], base="_Loss", given=deprecated)


@functools.cache
def transforms() -> dict[str, Signature]:
    """Returns the transforms of `torchvision.transforms`."""
    folder = _package("torchvision", "transforms")
    return _subclasses([folder / "transforms.py", folder / "autoaugment.py"], base=None, given=())


def _package(name: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed: pip install -r requirements.txt", name=name)
    return Path(spec.submodule_search_locations[0], *parts)


def _subclasses(files: Iterable[Path], *, base: str | None, given: tuple[str, ...]) -> dict[str, Signature]:
    """Returns the public classes below `base` (or all, for None) in `files` with their constructors' signatures."""
    classes = {
        node.name: node
        for file in sorted(files)
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> list[str]:
        bases = [ast.unparse(base).rpartition(".")[2] for base in classes[name].bases] if name in classes else []
        return bases + [older for parent in bases for older in ancestors(parent)]

    def constructor(name: str) -> ast.arguments | None:
        for candidate in [name, *ancestors(name)]:
            for member in classes[candidate].body if candidate in classes else []:
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    return member.args
        return None

    return {
        name: _signature(constructor(name), given)
        for name in sorted(classes)
        if not name.startswith("_") and (base is None or base in ancestors(name))
    }


def _signature(arguments: ast.arguments | None, given: tuple[str, ...]) -> Signature:
    if arguments is None:
        return Signature((), ())
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][1:]  # without self
    split = len(positional) - len(arguments.defaults)
    required, optional = positional[:split], positional[split:]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        (required if default is None else optional).append(argument.arg)
    return Signature(
        tuple(name for name in required if name not in given), tuple(name for name in optional if name not in given)
    )
