"""GhostNet against the study's numbers and against formulas written out here."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deployment.profiling.measure import count_multiply_adds
from models import build_model, count_parameters
from models.ghostnet import BLOCKS, Block, GhostBottleneck, GhostModule, GhostNet, SqueezeExcitation, scale_channels
from utils.errors import ConfigError


def ghost(**changes):
    return build_model("ghost", **{"num_classes": 196, "dropout": 0.2, "out_channels": 320} | changes)


@pytest.mark.parametrize(
    ("out_channels", "in_channels", "parameters"),
    [
        (320, 3, 3_041_412),
        (640, 3, 3_411_972),
        (960, 3, 3_782_532),
        (1280, 3, 4_153_092),
        (1600, 3, 4_523_652),
        (1280, 1, 4_152_804),
    ],
)
def test_parameters_of_the_published_networks(out_channels, in_channels, parameters):
    with torch.device("meta"):
        assert count_parameters(ghost(out_channels=out_channels, in_channels=in_channels)) == parameters


@pytest.mark.parametrize(
    ("num_classes", "out_channels", "size", "multiply_adds"),
    [(1000, 1280, 224, 141.1), (196, 320, 224, 139.0), (196, 320, 227, 161.4)],
)
def test_multiply_adds(num_classes, out_channels, size, multiply_adds):
    with torch.device("meta"):
        model = ghost(num_classes=num_classes, out_channels=out_channels).eval()
        assert round(count_multiply_adds(model, torch.zeros(1, 3, size, size)) / 1e6, 1) == multiply_adds
    assert num_classes == 196 or count_parameters(model) == 5_183_016


@pytest.mark.parametrize("in_channels", [1, 3])
def test_forward_and_a_finite_gradient_in_every_parameter(in_channels):
    torch.manual_seed(0)
    model = ghost(in_channels=in_channels, num_classes=12)
    logits = model(torch.randn(4, in_channels, 64, 64))
    assert logits.shape == (4, 12)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_table_of_blocks_is_the_papers():
    rows = """3 16 16 - 1; 3 48 24 - 2; 3 72 24 - 1; 5 72 40 SE 2; 5 120 40 SE 1; 3 240 80 - 2; 3 200 80 - 1; 3 184 80 - 1;
    3 184 80 - 1;
    3 480 112 SE 1; 3 672 112 SE 1; 5 672 160 SE 2; 5 960 160 - 1; 5 960 160 SE 1; 5 960 160 - 1; 5 960 160 SE 1"""
    expected = [row.split() for row in rows.split(";")]
    assert [Block(int(k), int(h), int(o), se == "SE", int(s)) for k, h, o, se, s in expected] == list(BLOCKS)


def run_conv_norm(x, layers, *, groups=1, stride=1):
    convolution, norm = layers[0], layers[1]
    kernel_size = convolution.weight.shape[-1]
    y = F.conv2d(x, convolution.weight, stride=stride, padding=kernel_size // 2, groups=groups)
    mean, variance = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    return (y - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def randomise(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("out", [9, 16])  # an odd width: the last ghost is dropped
def test_ghost_module_equals_its_formula(relu, out):
    torch.manual_seed(0)
    module = randomise(GhostModule(6, out, relu=relu))
    x = torch.randn(3, 6, 10, 10, dtype=torch.float64)
    half = (out + 1) // 2
    intrinsic = run_conv_norm(x, module.primary)
    intrinsic = intrinsic.clamp(min=0) if relu else intrinsic
    ghosts = run_conv_norm(intrinsic, module.cheap, groups=half)
    ghosts = ghosts.clamp(min=0) if relu else ghosts
    expected = torch.cat([intrinsic, ghosts], 1)[:, :out]
    torch.testing.assert_close(module(x), expected)
    assert module(x).shape[1] == out


def test_squeeze_excitation_clamps_its_gate_instead_of_a_sigmoid():
    torch.manual_seed(0)
    module = randomise(SqueezeExcitation(72))
    x = torch.randn(4, 72, 5, 5, dtype=torch.float64) * 3
    hidden = (x.mean(dim=(2, 3)) @ module.reduce.weight.T + module.reduce.bias).clamp(min=0)
    gate = (hidden @ module.expand.weight.T + module.expand.bias).clamp(0, 1)
    torch.testing.assert_close(module(x), x * gate[:, :, None, None])
    assert module.reduce.weight.shape == (18, 72)
    assert (gate == 0).any() and (gate == 1).any()  # no sigmoid reaches these


@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[1], BLOCKS[3], BLOCKS[4], BLOCKS[9]], ids=str)
def test_bottleneck_equals_its_formula(block):
    torch.manual_seed(0)
    channels = {BLOCKS[0]: 16, BLOCKS[1]: 16, BLOCKS[3]: 24, BLOCKS[4]: 40, BLOCKS[9]: 80}[block]
    module = randomise(GhostBottleneck(channels, block))
    x = torch.randn(2, channels, 12, 12, dtype=torch.float64)
    parts = list(module.layers)
    y = parts.pop(0)(x)
    if block.stride == 2:
        y = run_conv_norm(y, parts.pop(0), groups=block.hidden_channels, stride=2)
    if block.squeeze_excitation:
        y = parts.pop(0)(y)
    y = parts.pop(0)(y)
    assert not parts
    if block.stride == 1 and channels == block.out_channels:
        shortcut = x
    else:
        depthwise, pointwise = module.shortcut
        assert depthwise[0].weight.shape == (channels, 1, block.kernel_size, block.kernel_size)
        shortcut = run_conv_norm(run_conv_norm(x, depthwise, groups=channels, stride=block.stride), pointwise)
    torch.testing.assert_close(module(x), y + shortcut)


def test_initialisation():
    torch.manual_seed(0)
    model = ghost()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.weight.shape[0] * module.weight.shape[2] * module.weight.shape[3]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    hidden = model.head[0]
    assert hidden.bias is None and hidden.weight.abs().max() <= 960**-0.5  # torch's default


def test_dropout_is_where_it_belongs():
    model = ghost(dropout=0.35)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.35]
    assert isinstance(model.head[3], nn.Dropout)


def test_width_multiplier():
    assert [scale_channels(channels, 0.5) for channels in (16, 24, 40, 112, 184)] == [8, 12, 20, 56, 92]
    assert scale_channels(16, 0.1) == 4 and scale_channels(24, 0.27) == 8
    narrow = GhostNet(num_classes=196, in_channels=3, dropout=None, out_channels=320, width_multiplier=0.5)
    assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 196) and count_parameters(narrow) < 1_200_000


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("ghst", {}, "Did you mean 'ghost'"),
        ("ghost", {"out_channels": None}, "out_channels: ghost needs a width"),
        ("mob_v2", {}, "out_channels: mob_v2 does not take a width"),
        ("shuff_v2_x10", {"out_channels": None}, "shuff_v2_x10 has no dropout layer"),
        ("timm/mobilenetv3", {"out_channels": None}, "is not a model of timm"),
    ],
)
def test_what_cannot_be_built(architecture, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_model(architecture, **{"num_classes": 196, "dropout": 0.2, "out_channels": 320} | changes)
