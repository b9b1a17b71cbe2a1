"""SqueezeNext: a two-stage squeeze, then the 3×3 convolution as a 3×1 and a 1×3 one, then an expansion, with a shortcut.

Gholami et al., "SqueezeNext: Hardware-Aware Neural Network Design", CVPR workshops 2018: https://arxiv.org/abs/1803.10615
The authors' definitions: https://github.com/amirgholami/SqueezeNext

Unlike the authors' definitions, and like the study: the convolutions and the last layer have a bias, which the study's
parameter counts include. Like the authors' definitions, and unlike the study: max pooling is 3×3, the order of the separable
convolutions alternates, and the average is taken of the whole last feature map. The study averaged its first 4×4 positions
and so failed at sizes that leave fewer than 4 or more than 7.
"""

from functools import partial

from torch import Tensor, nn

from models.protocol import TimmProtocol

STEM_CHANNELS = 64
STAGE_CHANNELS = (32, 64, 128, 256)
HEAD_CHANNELS = 128
DEPTH = (6, 6, 8, 1)  # blocks of each stage
DEPTH_V5 = (2, 4, 14, 1)  # the paper's fifth variant, faster on its accelerator: fewer blocks on large maps


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int] = (1, 1), stride: int = 1, *, padded: bool = True
) -> nn.Sequential:
    """Returns convolution (padded to keep the size if `padded`), batch norm and ReLU."""
    padding = (kernel_size[0] // 2, kernel_size[1] // 2) if padded else 0
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class SqueezeNextBlock(nn.Module):
    """The block of figure 1: `out` / 2 and `out` / 4 channels, the separable convolutions, `out` channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, vertical_first: bool) -> None:
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        first, second = ((3, 1), (1, 3)) if vertical_first else ((1, 3), (3, 1))
        self.layers = nn.Sequential(
            conv_norm_relu(in_channels, half, stride=stride),
            conv_norm_relu(half, quarter),
            conv_norm_relu(quarter, half, first),
            conv_norm_relu(half, half, second),
            conv_norm_relu(half, out_channels),
        )
        if stride == 1 and in_channels == out_channels:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = conv_norm_relu(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) → (N, out, H / stride, W / stride)
        # Both summands are outputs of a ReLU: the one that the paper draws after the sum would change nothing.
        return self.layers(x) + self.shortcut(x)


class SqueezeNext(TimmProtocol):
    """A SqueezeNext of 23 modules.

    Args:
        num_classes: Number of logits.
        in_channels: 3 for color images, 1 for gray ones.
        dropout: Not used: the model has none.
        width_multiplier: Factor of all widths.
        depth: Number of blocks of each of the four stages.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, dropout: None = None, width_multiplier: int, depth: tuple[int, ...]
    ) -> None:
        super().__init__()
        channels = STEM_CHANNELS * width_multiplier
        layers: list[nn.Module] = [
            conv_norm_relu(in_channels, channels, (7, 7), 2, padded=False),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        ]
        number = 0
        for stage, blocks in enumerate(depth):
            out_channels = STAGE_CHANNELS[stage] * width_multiplier
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(SqueezeNextBlock(channels, out_channels, stride, vertical_first=number % 2 == 0))
                channels = out_channels
                number += 1
        last = HEAD_CHANNELS * width_multiplier
        self.num_features = last
        self.features = nn.Sequential(*layers, conv_norm_relu(channels, last))
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # Caffe's "xavier", as the authors use: uniform with variance 1 / fan-in.
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.bias)


SQUEEZENEXTS = {
    "sqnxt_1": partial(SqueezeNext, width_multiplier=1, depth=DEPTH),
    "sqnxt_1v5": partial(SqueezeNext, width_multiplier=1, depth=DEPTH_V5),
    "sqnxt_2": partial(SqueezeNext, width_multiplier=2, depth=DEPTH),
    "sqnxt_2v5": partial(SqueezeNext, width_multiplier=2, depth=DEPTH_V5),
}
