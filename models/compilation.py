"""torch.compile for the batches of full size; nothing is compiled a second time for the partial last one."""

import os
import shutil
from typing import Literal

import torch
from torch import Tensor, nn

from utils.errors import ConfigError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
COMPILERS = ("g++", "clang++", "c++", "cl")  # what torch and triton turn their code into machine code with


class FullBatches:
    """Runs batches of one size through a compiled form of `network`, and all others through the network itself.

    Both share the weights. This is no module, so that a checkpoint names each weight once, and as without compilation.
    Training and evaluation are compiled once each: every second photo of an epoch is evaluated, and on a fast device the
    plain network would take longer for it, being bound by launches, than the compiled one for the training.

    Args:
        network: Turns images (N, C, H, W) into logits (N, classes).
        mode: Of `torch.compile`; the last two record CUDA graphs.
        batch_size: N of a full batch.
    """

    def __init__(self, network: nn.Module, mode: CompileMode, batch_size: int) -> None:
        self.network = network
        self.batch_size = batch_size
        # torch gives up compiling a function after eight networks, which several trainings of one process may well have.
        torch.compiler.reset()
        self.compiled = torch.compile(network, mode=mode, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns logits, which with CUDA graphs are overwritten by the next call."""
        if len(images) != self.batch_size:
            return self.network(images)
        torch.compiler.cudagraph_mark_step_begin()  # no output of the last step is needed any more
        return self.compiled(images)


def check_compiler() -> None:
    """Looks for what compiles the code that torch.compile writes.

    Raises:
        ConfigError: There is none.
    """
    if not (os.environ.get("CC") or os.environ.get("CXX") or any(map(shutil.which, COMPILERS))):
        raise ConfigError(
            "torch.compile needs a C++ compiler, and this machine has none: install g++, or set it to null"
        )
