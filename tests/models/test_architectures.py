"""Every architecture but ghost: exact size, both kinds of image, gradients, a training step, a checkpoint, its limits."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from models import build_model, count_parameters
from models.hardnet import HARDNETS, harmonic_links, layer_channels
from models.squeezenext import SQUEEZENEXTS
from models.timm_models import build_timm
from models.torchvision_models import TORCHVISION_MODELS
from utils.config import load_config
from utils.config.architectures import ARCHITECTURE_LIMITS
from utils.errors import ConfigError

BUILDERS = {**HARDNETS, **SQUEEZENEXTS, **TORCHVISION_MODELS}
PARAMETERS = {  # with 196 classes and three channels; hard_39 is ours, the others are the study's
    "sq_10": 835_972,
    "sq_11": 823_044,
    "sqnxt_1": 620_340,
    "sqnxt_1v5": 818_100,
    "sqnxt_2": 2_377_124,
    "sqnxt_2v5": 3_159_716,
    "mob_v2": 2_474_948,
    "eff_b0": 4_258_624,
    "eff_b1": 6_764_260,
    "eff_b2": 7_977_158,
    "eff_b3": 10_997_484,
    "eff_b4": 17_900_044,
    "eff_b5": 28_742_388,
    "eff_b6": 41_187_484,
    "eff_b7": 64_288_916,
    "hard_39": 12_489_664,
    "hard_39dw": 2_664_128,
    "hard_68": 16_741_248,
    "hard_68dw": 3_356_502,
    "hard_85": 35_640_288,
    "hard_85dw": 6_723_162,
    "shuff_v2_x05": 542_692,
    "shuff_v2_x10": 1_454_504,
    "shuff_v2_x15": 2_679_524,
    "shuff_v2_x20": 5_746_600,
}
GIANTS = ("eff_b4", "eff_b5", "eff_b6", "eff_b7")  # the same code as the others, too slow to train here: shapes alone
LEAST_THAT_RUNS = {"sq_10": 21, "sq_11": 17, "hard_39": 29, "hard_68": 29, "hard_85": 29, "sqnxt_1": 9, "sqnxt_2v5": 9}


def build(name: str, *, in_channels: int = 3, dropout: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    return BUILDERS[name](num_classes=196, in_channels=in_channels, dropout=dropout)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def last_map(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Returns height and width of what the last convolution makes of `images`."""
    shapes = []
    hook = convolutions(model)[-1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[2:]))
    model(images)
    hook.remove()
    return tuple(shapes[0])


@pytest.fixture(scope="module", params=[name for name in PARAMETERS if name not in GIANTS])
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, build(request.param)


def test_every_architecture_has_a_builder_and_limits():
    assert set(BUILDERS) == set(PARAMETERS) == set(ARCHITECTURE_LIMITS) - {"ghost"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_and_dropout(name: str):
    has_dropout = ARCHITECTURE_LIMITS[name].dropout
    with torch.device("meta"):
        colour, gray = build(name, dropout=0.35 if has_dropout else None), build(name, in_channels=1)
    assert count_parameters(colour) == PARAMETERS[name]
    stem = convolutions(gray)[0]
    assert stem.in_channels == 1
    assert count_parameters(gray) == PARAMETERS[name] - 2 * stem.weight.numel()
    for setting in ("out_channels", "kernel_size", "stride", "padding"):
        assert getattr(stem, setting) == getattr(convolutions(colour)[0], setting)
    for model, probability in ((colour, 0.35), (gray, 0.0)):
        probabilities = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        assert probabilities == ([probability] if has_dropout else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", GIANTS)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_of_giants(name: str, in_channels: int):
    with torch.device("meta"):
        assert build(name, in_channels=in_channels)(torch.zeros(2, in_channels, 64, 64)).shape == (2, 196)


@pytest.mark.slow
def test_smallest_image(network: tuple[str, nn.Module]):
    name, model = network
    size = ARCHITECTURE_LIMITS[name].min_image_size
    images = torch.randn(2, 3, size, size)
    for mode in (True, False):
        logits = model.train(mode)(images)
        assert logits.shape == (2, 196)
        assert logits.isfinite().all()
    assert last_map(model, images) == (1, 1)
    if size == 32:  # the product of the strides: twice the size leaves twice the positions
        assert last_map(model, torch.randn(1, 3, 64, 64)) == (2, 2)


@pytest.mark.parametrize(("name", "size"), LEAST_THAT_RUNS.items())
def test_sizes_at_which_a_network_fails(name: str, size: int):
    assert size <= ARCHITECTURE_LIMITS[name].min_image_size
    with torch.device("meta"):
        model = build(name)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 196)
        with pytest.raises(RuntimeError, match="Output size is too small"):
            model(torch.zeros(2, 3, size - 1, size - 1))


@pytest.mark.parametrize("name", PARAMETERS)
def test_configuration_refuses_smaller_images(name: str):
    limit = ARCHITECTURE_LIMITS[name].min_image_size
    settings = [f"architecture={name}", "out_channels=null", "dropout=null"]
    assert load_config(overrides=[*settings, f"image_size=[{limit}, {limit}]"]).architecture == name
    with pytest.raises(ConfigError, match=f"too small for {name}; expected at least {limit} pixels"):
        load_config(overrides=[*settings, f"image_size=[{limit}, {limit - 1}]"])


def test_training_step(network: tuple[str, nn.Module]):
    # In double precision a step of decrease / |gradient|² lowers the loss by just that decrease, if the gradient is right.
    decrease = 1e-4
    model = copy.deepcopy(network[1]).double().train()
    images, labels = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 77])

    def loss() -> Tensor:
        torch.manual_seed(0)  # EfficientNet drops whole blocks by chance
        return nn.functional.cross_entropy(model(images), labels)

    before = loss()
    before.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    gradients = [parameter.grad for parameter in model.parameters()]
    learning_rate = decrease / sum(gradient.square().sum().item() for gradient in gradients)
    torch.optim.SGD(model.parameters(), lr=learning_rate).step()
    assert before.item() - loss().item() == pytest.approx(decrease, rel=0.05)


@pytest.mark.slow
def test_gray_images_and_checkpoint(network: tuple[str, nn.Module], tmp_path):
    name = network[0]
    model = build(name, in_channels=1)
    images = torch.randn(2, 1, 64, 64)
    logits = model.train()(images)  # moves the statistics of batch norm off their start
    assert logits.shape == (2, 196)
    assert logits.isfinite().all()
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.ckpt")
    with torch.device("meta"):
        loaded = build(name, in_channels=1).eval()
    loaded.load_state_dict(torch.load(tmp_path / "weights.ckpt", weights_only=True), assign=True)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ["sq_10", "mob_v2", "eff_b0", "shuff_v2_x20"])
def test_stem_starts_as_the_library_starts_it(name: str, in_channels: int):
    stem = convolutions(build(name, in_channels=in_channels))[0]
    fan_in, fan_out = (channels * stem.kernel_size[0] ** 2 for channels in (in_channels, stem.out_channels))
    variance = {"sq_10": 2 / fan_in, "shuff_v2_x20": 1 / (3 * fan_in)}.get(name, 2 / fan_out)
    # The standard deviation of n random numbers strays by a relative 1 / √(2n): twice that, for the fixed seed.
    tolerance = 2 / math.sqrt(2 * stem.weight.numel())
    assert stem.weight.std().item() == pytest.approx(math.sqrt(variance), rel=tolerance)
    assert stem.bias is None or not stem.bias.any()


@pytest.mark.parametrize("name", ["ghost", "hard_39dw", "sqnxt_1"])
def test_our_own_architectures_follow_timms_protocol(name):
    settings = {"out_channels": 64} if name == "ghost" else {}
    model = build_model(name, num_classes=7, **settings).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 2, 2)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.get_classifier() is list(model.modules())[-1] and model.get_classifier().out_features == 7
    keys = list(model.state_dict())
    model.reset_classifier(5)
    assert model(images).shape == (2, 5) and list(model.state_dict()) == keys
    assert torch.equal(model.forward_features(images), features)


def test_hardnet_links_and_widths():
    assert harmonic_links(7) == [6]
    assert harmonic_links(12) == [11, 10, 8]
    assert harmonic_links(16) == [15, 14, 12, 8, 0]
    # 20 · 1.6ⁿ = 20, 32, 51.2, 81.92, 131.072: rounded down, then up to an even number.
    assert [layer_channels(layer, 20, 1.6) for layer in (1, 2, 4, 8, 16)] == [20, 32, 52, 82, 132]


def test_hard_39_is_hard_39dw_with_whole_convolutions():
    # Each 1×1 convolution of a block, and the second of the stem, becomes 3×3; every depthwise one and its norm is gone.
    with torch.device("meta"):
        depthwise = convolutions(build("hard_39dw"))
    inner = [first for first, second in pairwise(depthwise) if second.groups > 1]
    transitions = [first for first in inner if first.out_channels in (96, 320, 640)]  # max pooling follows these
    widened = sum(8 * conv.weight.numel() for conv in inner if conv not in transitions)
    gone = sum((9 + 2) * conv.out_channels for conv in depthwise if conv.groups > 1)
    assert len(transitions) == 3
    assert PARAMETERS["hard_39"] == PARAMETERS["hard_39dw"] + widened - gone


def test_squeezenext_alternates_and_starts_as_its_authors():
    model = build("sqnxt_1")
    separable = [conv.kernel_size for conv in convolutions(model) if sum(conv.kernel_size) == 4]
    assert separable == ([(3, 1), (1, 3), (1, 3), (3, 1)] * 11)[: 2 * (6 + 6 + 8 + 1)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / module.weight[0].numel())  # uniform, variance 1 / fan-in
            assert 0.9 * bound < module.weight.abs().max().item() <= bound
            assert not module.bias.any()


# timm


@pytest.mark.parametrize("dropout", [None, 0.5])
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnetv3_050", "repghostnet_050", "fastvit_t8"])
def test_timm_logits_and_dropout(name: str, dropout: float | None):
    model = build_timm(name, num_classes=5, in_channels=1, dropout=dropout, image_size=(64, 96))
    assert model.training
    features = model.forward_features(torch.randn(2, 1, 64, 96))
    first, second = model.forward_head(features), model.forward_head(features)
    assert first.shape == (2, 5)
    # None is none, though ghostnetv3's own default is 0.2.
    assert torch.equal(first, second) == (dropout is None)


def test_timm_trial_changes_nothing():
    states = []
    for image_size in (None, (64, 64)):
        torch.manual_seed(0)
        model = build_timm("mobilenetv3_small_050", num_classes=5, in_channels=3, dropout=0.2, image_size=image_size)
        states.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(untried, tried) for untried, tried in zip(*states, strict=True))


def test_timm_network_of_fixed_size_is_made_for_the_image():
    model = build_timm("vit_tiny_patch16_224", num_classes=5, in_channels=3, dropout=None, image_size=(64, 96))
    assert model.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilnetv3_smal_050", r"not a model of timm\. Nearest: timm/mobilenetv3_small_050, "),
        ("mobilenetv3_small_050.lamb", r"not a model of timm\. Nearest: timm/mobilenetv3_small_050\.lamb_in1k\."),
        ("hf-hub:timm/resnet18", r"not a model of timm\..*`timm\.list_models\(\)`"),
        ("test_vit", "does not take images of 65×65 pixels: Input height"),
        ("xcit_nano_12_p16_224", "cannot be built with .*'img_size': .*divide image dimensions"),
        ("qwen3_vit_88m_enc", "is not a classification model"),
        ("gemma4_vit_167m_enc", "cannot be built with .*drop_rate"),
    ],
)
def test_timm_refusals(name: str, message: str):
    with torch.device("meta" if name.endswith("_enc") else "cpu"), pytest.raises(ConfigError, match=message):
        build_timm(name, num_classes=5, in_channels=3, dropout=0.5, image_size=(65, 65))


def test_timm_network_that_ignores_dropout_is_refused():
    from timm.models import register_model

    class Deaf(nn.Linear):
        num_classes = 5

    @register_model
    def deaf_to_dropout(**settings: object) -> nn.Module:
        return Deaf(1, 5)

    with pytest.raises(ConfigError, match="timm/deaf_to_dropout has no dropout that can be set"):
        build_timm("deaf_to_dropout", num_classes=5, in_channels=3, dropout=0.5)
    assert isinstance(build_timm("deaf_to_dropout", num_classes=5, in_channels=3, dropout=None), Deaf)
