"""HarDNet: dense blocks that keep only connections of lengths that are powers of two, to reduce memory traffic.

Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019: https://arxiv.org/abs/1909.00948
The authors' code: https://github.com/PingoLH/Pytorch-HarDNet

"dw" are the depthwise separable models, DS in the paper. The paper has HarDNet-39 as DS only, and the study's hard_39
could not be built. Unlike the paper: hard_39 exists. It differs from hard_39dw as HarDNet-68 does from HarDNet-68DS: the same
blocks with 3×3 convolutions, and max pooling between them. hard_85dw is made from HarDNet-85 in the opposite direction.

Unlike the authors' code: `dropout` is the only dropout, before the last layer. There it is 0.1 (68), 0.2 (85) or 0.05 (DS),
and the 85-layer models have another of 0.1 before their last transition.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.protocol import TimmProtocol


class Block(NamedTuple):
    """A harmonic dense block, the 1×1 transition after it, and whether the size is then halved."""

    num_layers: int
    growth_rate: int
    out_channels: int
    downsample: bool


class Layout(NamedTuple):
    """One model of the paper.

    Attributes:
        stem_channels: Widths of the two convolutions before the blocks.
        multiplier: m of section 3: a layer is m times wider for each power of two that divides its number.
        blocks: From the image to the classifier.
    """

    stem_channels: tuple[int, int]
    multiplier: float
    blocks: tuple[Block, ...]


HARDNET_39 = Layout(
    stem_channels=(24, 48),
    multiplier=1.6,
    blocks=(Block(4, 16, 96, True), Block(16, 20, 320, True), Block(8, 64, 640, True), Block(4, 160, 1024, False)),
)
HARDNET_68 = Layout(
    stem_channels=(32, 64),
    multiplier=1.7,
    blocks=(
        Block(8, 14, 128, True),
        Block(16, 16, 256, False),
        Block(16, 20, 320, True),
        Block(16, 40, 640, True),
        Block(4, 160, 1024, False),
    ),
)
HARDNET_85 = Layout(
    stem_channels=(48, 96),
    multiplier=1.7,
    blocks=(
        Block(8, 24, 192, True),
        Block(16, 24, 256, False),
        Block(16, 28, 320, True),
        Block(16, 36, 480, False),
        Block(16, 48, 720, True),
        Block(4, 256, 1280, False),
    ),
)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Returns convolution (padded to keep the size, no bias), batch norm and ReLU6."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def depthwise_norm(channels: int, stride: int = 1) -> nn.Sequential:
    """Returns a 3×3 depthwise convolution and batch norm; no activation, as in the authors' code."""
    convolution = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


def harmonic_links(layer: int) -> list[int]:
    """Returns the layers that feed layer number `layer` ≥ 1: `layer` − 2ⁿ for every 2ⁿ that divides it; 0 is the input."""
    return [layer - 2**n for n in range(layer.bit_length()) if layer % 2**n == 0]


def layer_channels(layer: int, growth_rate: int, multiplier: float) -> int:
    """Returns the width of layer number `layer` ≥ 1: growth_rate · multiplierⁿ for the largest 2ⁿ that divides it.

    It is rounded down, then up to an even number.
    """
    width = growth_rate * multiplier ** (len(harmonic_links(layer)) - 1)
    return int(width + 1) // 2 * 2


class HarDBlock(nn.Module):
    """A harmonic dense block (section 3); its output is the layers of odd number and the last one."""

    def __init__(self, in_channels: int, block: Block, multiplier: float, *, depthwise: bool) -> None:
        super().__init__()
        numbers = range(1, block.num_layers + 1)
        widths = [in_channels, *(layer_channels(layer, block.growth_rate, multiplier) for layer in numbers)]
        self.links = [harmonic_links(layer) for layer in numbers]
        self.outputs = [layer for layer in numbers if layer % 2 == 1 or layer == block.num_layers]
        self.out_channels = sum(widths[layer] for layer in self.outputs)
        self.layers = nn.ModuleList()
        for layer, links in zip(numbers, self.links, strict=True):
            linked, width = sum(widths[link] for link in links), widths[layer]
            if depthwise:
                # Pointwise first, so that the depthwise convolution does not read the many concatenated channels.
                self.layers.append(nn.Sequential(conv_norm_relu(linked, width, 1), depthwise_norm(width)))
            else:
                self.layers.append(conv_norm_relu(linked, width, 3))

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) → (N, out, H, W)
        features = [x]
        for links, layer in zip(self.links, self.layers, strict=True):
            features.append(layer(torch.cat([features[link] for link in links], dim=1)))
        return torch.cat([features[layer] for layer in self.outputs], dim=1)


class HarDNet(TimmProtocol):
    """A model of the paper's table of architectures.

    Args:
        num_classes: Number of logits.
        in_channels: 3 for color images, 1 for gray ones.
        dropout: Probability before the last layer; None for none.
        layout: Widths and blocks.
        depthwise: Whether 3×3 convolutions are depthwise separable, and halve the size instead of max pooling.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, dropout: float | None, layout: Layout, depthwise: bool
    ) -> None:
        super().__init__()
        first, channels = layout.stem_channels
        layers: list[nn.Module] = [
            conv_norm_relu(in_channels, first, 3, 2),
            conv_norm_relu(first, channels, 1 if depthwise else 3),
            depthwise_norm(channels, 2) if depthwise else nn.MaxPool2d(3, 2, padding=1),
        ]
        for block in layout.blocks:
            dense = HarDBlock(channels, block, layout.multiplier, depthwise=depthwise)
            channels = block.out_channels
            layers += [dense, conv_norm_relu(dense.out_channels, channels, 1)]
            if block.downsample:
                layers.append(depthwise_norm(channels, 2) if depthwise else nn.MaxPool2d(2))
        self.num_features = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout or 0.0), nn.Linear(channels, num_classes))


HARDNETS = {
    f"hard_{num_layers}{suffix}": partial(HarDNet, layout=layout, depthwise=depthwise)
    for num_layers, layout in ((39, HARDNET_39), (68, HARDNET_68), (85, HARDNET_85))
    for suffix, depthwise in (("", False), ("dw", True))
}
