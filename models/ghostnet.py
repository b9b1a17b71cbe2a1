"""GhostNet: half of each layer's channels by a convolution, the other half by a cheap depthwise convolution of the first.

Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020: https://arxiv.org/abs/1911.11907

Unlike the paper, and like the authors' first public version, which the study trained: the gate of squeeze-and-excitation
is clamped to [0, 1] instead of a hard sigmoid, the shortcut's depthwise convolution has the block's kernel size, and the last
hidden layer follows the pooling as a linear layer without bias and with batch norm, of a width that can be chosen.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.protocol import TimmProtocol


class Block(NamedTuple):
    """One row of the paper's table 1 for width 1.0."""

    kernel_size: int
    hidden_channels: int
    out_channels: int
    squeeze_excitation: bool
    stride: int


BLOCKS = (
    Block(3, 16, 16, False, 1),
    Block(3, 48, 24, False, 2),
    Block(3, 72, 24, False, 1),
    Block(5, 72, 40, True, 2),
    Block(5, 120, 40, True, 1),
    Block(3, 240, 80, False, 2),
    Block(3, 200, 80, False, 1),
    Block(3, 184, 80, False, 1),
    Block(3, 184, 80, False, 1),
    Block(3, 480, 112, True, 1),
    Block(3, 672, 112, True, 1),
    Block(5, 672, 160, True, 2),
    Block(5, 960, 160, False, 1),
    Block(5, 960, 160, True, 1),
    Block(5, 960, 160, False, 1),
    Block(5, 960, 160, True, 1),
)
STEM_CHANNELS = 16
REDUCTION = 4  # of the channels inside squeeze-and-excitation


def scale_channels(channels: int, width_multiplier: float) -> int:
    """Returns the multiple of 4 nearest to `channels` · `width_multiplier`, and at least 90 % of it."""
    wanted = channels * width_multiplier
    scaled = max(4, int(wanted + 2) // 4 * 4)
    return scaled if scaled >= 0.9 * wanted else scaled + 4


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, *, groups: int = 1, relu: bool = False
) -> nn.Sequential:
    """Returns convolution (padded to keep the size, no bias), batch norm and, if asked, ReLU."""
    padding = kernel_size // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), *([nn.ReLU(inplace=True)] if relu else []))


class GhostModule(nn.Module):
    """Intrinsic channels by a pointwise convolution, as many ghosts of them by a 3×3 depthwise one (section 3.1)."""

    def __init__(self, in_channels: int, out_channels: int, *, relu: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        intrinsic = math.ceil(out_channels / 2)
        self.primary = conv_norm(in_channels, intrinsic, relu=relu)
        self.cheap = conv_norm(intrinsic, intrinsic, 3, groups=intrinsic, relu=relu)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) → (N, out, H, W)
        intrinsic = self.primary(x)
        features = torch.cat([intrinsic, self.cheap(intrinsic)], dim=1)
        return features[:, : self.out_channels]


class SqueezeExcitation(nn.Module):
    """A gate in [0, 1] for each channel, computed from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // REDUCTION)
        self.expand = nn.Linear(channels // REDUCTION, channels)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) → the same
        means = x.mean(dim=(2, 3))  # (N, C)
        # Unlike the paper: clamped instead of a hard sigmoid.
        gate = self.expand(self.reduce(means).relu()).clamp(0, 1)
        return x * gate[:, :, None, None]


class GhostBottleneck(nn.Module):
    """Two ghost modules that widen and narrow, with a shortcut around them (section 3.2)."""

    def __init__(self, in_channels: int, block: Block) -> None:
        super().__init__()
        kernel_size, hidden, out, squeeze_excitation, stride = block
        layers: list[nn.Module] = [GhostModule(in_channels, hidden, relu=True)]
        if stride == 2:
            layers.append(conv_norm(hidden, hidden, kernel_size, stride, groups=hidden))
        if squeeze_excitation:
            layers.append(SqueezeExcitation(hidden))
        layers.append(GhostModule(hidden, out, relu=False))
        self.layers = nn.Sequential(*layers)
        if stride == 1 and in_channels == out:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(
                conv_norm(in_channels, in_channels, kernel_size, stride, groups=in_channels),
                conv_norm(in_channels, out),
            )

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) → (N, out, H / stride, W / stride)
        return self.layers(x) + self.shortcut(x)


class GhostNet(TimmProtocol):
    """The model of the study.

    Args:
        num_classes: Number of logits.
        in_channels: 3 for color images, 1 for gray ones.
        dropout: Probability before the last layer; None for none.
        out_channels: Width of the last hidden layer; 1280 in the paper, 320 in the study's best experiment.
        width_multiplier: Factor of all other widths.
    """

    head_name = "head"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        dropout: float | None,
        out_channels: int,
        width_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        channels = scale_channels(STEM_CHANNELS, width_multiplier)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, 2, relu=True)]
        for block in BLOCKS:
            scaled = block._replace(
                hidden_channels=scale_channels(block.hidden_channels, width_multiplier),
                out_channels=scale_channels(block.out_channels, width_multiplier),
            )
            layers.append(GhostBottleneck(channels, scaled))
            channels = scaled.out_channels
        last = scale_channels(BLOCKS[-1].hidden_channels, width_multiplier)
        self.num_features = last
        self.features = nn.Sequential(*layers, conv_norm(channels, last, relu=True))
        self.head = nn.Sequential(
            nn.Linear(last, out_channels, bias=False),
            nn.BatchNorm1d(out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout or 0.0),
            nn.Linear(out_channels, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
