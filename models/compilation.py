"""torch.compile for full batches; the partial last batch runs eagerly instead of being compiled too."""

import os
import shutil
from typing import Literal

import torch
from torch import Tensor, nn

from utils.errors import ConfigError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
COMPILERS = ("g++", "clang++", "c++", "cl")  # that torch and triton use


class FullBatches:
    """Runs full batches through a compiled form of `model`, and all others through the model itself.

    Both share the weights. Not an nn.Module, so state_dict keys keep their names. Training and evaluation are compiled once
    each: half of an epoch's images are validation images, and on a fast device the eager model is bound by kernel launches.

    Args:
        model: Turns images (N, C, H, W) into logits (N, classes).
        mode: Of `torch.compile`; the last two record CUDA graphs.
        batch_size: N of a full batch.
    """

    def __init__(self, model: nn.Module, mode: CompileMode, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        # torch stops compiling a function after eight models, and a process may train more than that.
        torch.compiler.reset()
        self.compiled = torch.compile(model, mode=mode, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns logits, which the next call overwrites with CUDA graphs."""
        if len(images) != self.batch_size:
            return self.model(images)
        torch.compiler.cudagraph_mark_step_begin()  # the outputs of the last step are no longer needed
        return self.compiled(images)


def check_compiler() -> None:
    """Checks that this machine has a compiler for the code that torch.compile generates.

    Raises:
        ConfigError: It has none.
    """
    if not (os.environ.get("CC") or os.environ.get("CXX") or any(map(shutil.which, COMPILERS))):
        raise ConfigError("torch.compile needs a C++ compiler; install g++, or set compile: null")
