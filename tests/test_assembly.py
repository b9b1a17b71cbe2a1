"""What is chosen by the device, on machines that have it and on those that do not."""

import copy

import pytest
import torch
from torch import nn

import assembly
from models import build_model
from models.optimization import build_optimizer
from training import trainer
from training.trainer import SyncBatchNorm
from utils.config import load_config

H100, A100, T4 = (9, 0), (8, 0), (7, 5)


def see_devices(monkeypatch, *capabilities: tuple[int, int]) -> None:
    """Makes torch see CUDA devices of these compute capabilities."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capabilities[device])


@pytest.mark.parametrize(
    ("capabilities", "devices", "expected"),
    [
        ([H100], "auto", "bf16-mixed"), ([A100], "auto", "bf16-mixed"), ([T4], "auto", "16-mixed"), ([], "auto", "32-true"),
        ([T4, H100], "[1]", "bf16-mixed"), ([H100, T4], "[1]", "16-mixed"),
        ([H100, T4], "auto", "16-mixed"), ([H100, T4], "1", "bf16-mixed"),
    ],
)  # fmt: skip
def test_auto_is_the_precision_that_all_devices_used_have_natively(monkeypatch, capabilities, devices, expected):
    see_devices(monkeypatch, *capabilities)
    assert assembly.precision(load_config(overrides=[f"devices={devices}"])) == expected
    assert assembly.precision(load_config(overrides=["accelerator=cpu"])) == "32-true"
    assert assembly.precision(load_config(overrides=["precision=32-true"])) == "32-true"


@pytest.mark.parametrize(
    ("change", "on_cuda", "on_cpu"),
    [
        (
            "augmentation_device=auto",
            "on the device: every configured transform supports it",
            "on the CPU: no CUDA device is used",
        ),
        ("augmentation_device=cpu", "on the CPU: augmentation_device is cpu", "on the CPU: augmentation_device is cpu"),
        ("image_augmentations={AugMix: {}}", "on the CPU: AugMix: it has no", "no CUDA device is used"),
        ("cache_path=null", "on the CPU: cache_path is null", "no CUDA device is used"),
    ],
)
def test_the_log_says_where_images_are_augmented_and_why(monkeypatch, change, on_cuda, on_cpu):
    for capabilities, expected in (([A100], on_cuda), ([], on_cpu)):
        see_devices(monkeypatch, *capabilities)
        assert expected in assembly.augmentation_path(load_config(overrides=[change]))


@pytest.mark.parametrize(
    ("on_cuda", "deterministic", "tried"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_cudnn_tries_its_kernels_unless_the_same_ones_are_wanted(tmp_path, monkeypatch, on_cuda, deterministic, tried):
    monkeypatch.setattr(trainer, "uses_cuda", lambda accelerator: on_cuda)
    config = load_config(overrides=["accelerator=cpu", "precision=32-true", f"deterministic={deterministic}"])
    before = torch.are_deterministic_algorithms_enabled()
    with torch.backends.cudnn.flags(benchmark=not tried):
        assembly.build_trainer(config, tmp_path, [])
        found = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(before)
    assert found == tried


def test_a_key_that_the_other_way_of_augmenting_leaves_unused_is_named():
    def messages(*changes: str) -> str:
        return assembly.augmentation_path(load_config(overrides=["accelerator=cpu", *changes]))

    assert messages("cache_on_device=True").endswith("no CUDA device is used; cache_on_device has no effect")
    assert messages("augmentation_device=device", "num_workers=3").endswith("is device; num_workers has no effect")
    assert "no effect" not in messages("num_workers=3") + messages("augmentation_device=device", "cache_on_device=True")


def test_the_defaults_are_the_fast_ones_that_change_no_result():
    config = load_config()
    classifier = assembly.build_classifier(config, num_classes=4)
    convolution = next(module for module in classifier.modules() if isinstance(module, torch.nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert build_optimizer(config.optimizer, config.optimizer_params, classifier.parameters()).defaults["fused"]


@pytest.mark.parametrize("architecture", ["timm/test_efficientnet", "mob_v2"])
def test_batch_norm_over_processes_computes_what_one_process_does(architecture):
    model = build_model(architecture, num_classes=4).eval()
    image = torch.randn(2, 3, 64, 64)
    converted = SyncBatchNorm().apply(copy.deepcopy(model)).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(image), model(image))
