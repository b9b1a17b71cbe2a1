"""SqueezeNet, MobileNetV2, EfficientNet and ShuffleNetV2 of torchvision, with random weights.

Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016: https://arxiv.org/abs/1602.07360
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018: https://arxiv.org/abs/1801.04381
Tan and Le, "EfficientNet: Rethinking Model Scaling", ICML 2019: https://arxiv.org/abs/1905.11946
Ma et al., "ShuffleNet V2: Practical Guidelines", ECCV 2018: https://arxiv.org/abs/1807.11164
Source: https://pytorch.org/vision/stable/models.html

Unlike the library: one gray channel is possible, with a first convolution that is initialized as the library's own.
EfficientNet keeps the library's stochastic depth of 0.2, as its paper has it; `dropout` does not change it.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision import models


def build_torchvision(
    constructor: Callable[..., nn.Module],
    initialize: Callable[[Tensor], Tensor],
    *,
    num_classes: int,
    in_channels: int,
    dropout: float | None,
    has_dropout: bool = True,
    drop_path: float | None = None,
) -> nn.Module:
    """Builds a model of torchvision that turns images (N, in_channels, H, W) into logits (N, num_classes).

    Args:
        constructor: A function of `torchvision.models`.
        initialize: The library's initialization of this model's convolutions.
        num_classes: Number of logits.
        in_channels: 3 for color images, 1 for gray ones.
        dropout: Probability before the last layer; None for none, whatever the library's default.
        drop_path: Maximum probability of EfficientNet's stochastic depth; None for the library's.
        has_dropout: Whether the model has a dropout layer.
    """
    settings = {"dropout": dropout or 0.0} if has_dropout else {}
    if drop_path is not None:
        settings["stochastic_depth_prob"] = drop_path
    model = constructor(weights=None, num_classes=num_classes, **settings)
    if in_channels != 3:
        name, stem = next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
        has_bias = stem.bias is not None
        replacement = nn.Conv2d(
            in_channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=has_bias
        )
        initialize(replacement.weight)
        if has_bias:
            nn.init.zeros_(replacement.bias)
        model.set_submodule(name, replacement)
    return model


_squeezenet = partial(build_torchvision, initialize=nn.init.kaiming_uniform_)
_he_normal = partial(build_torchvision, initialize=partial(nn.init.kaiming_normal_, mode="fan_out"))
# torchvision keeps PyTorch's default initialization for ShuffleNetV2.
_shufflenet = partial(
    build_torchvision, initialize=partial(nn.init.kaiming_uniform_, a=math.sqrt(5)), has_dropout=False
)

TORCHVISION_MODELS: dict[str, Callable[..., nn.Module]] = {
    "sq_10": partial(_squeezenet, models.squeezenet1_0),
    "sq_11": partial(_squeezenet, models.squeezenet1_1),
    "mob_v2": partial(_he_normal, models.mobilenet_v2),
    "eff_b0": partial(_he_normal, models.efficientnet_b0),
    "eff_b1": partial(_he_normal, models.efficientnet_b1),
    "eff_b2": partial(_he_normal, models.efficientnet_b2),
    "eff_b3": partial(_he_normal, models.efficientnet_b3),
    "eff_b4": partial(_he_normal, models.efficientnet_b4),
    "eff_b5": partial(_he_normal, models.efficientnet_b5),
    "eff_b6": partial(_he_normal, models.efficientnet_b6),
    "eff_b7": partial(_he_normal, models.efficientnet_b7),
    "shuff_v2_x05": partial(_shufflenet, models.shufflenet_v2_x0_5),
    "shuff_v2_x10": partial(_shufflenet, models.shufflenet_v2_x1_0),
    "shuff_v2_x15": partial(_shufflenet, models.shufflenet_v2_x1_5),
    "shuff_v2_x20": partial(_shufflenet, models.shufflenet_v2_x2_0),
}
