"""What is chosen by the device, on machines that have it and on those that do not."""

import copy
import json

import pytest
import torch
from torch import nn

import assembly
from assembly.trainer import SyncBatchNorm
from datamodules.datamodule import with_boxes_of_others
from losses.distillation import Teacher
from models import build_model
from models.optimization import build_optimizer
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


def test_every_key_of_the_recipe_reaches_the_training(tmp_path):
    settings = {
        "dropout": 0.37, "gradient_clip_norm": 0.7, "accumulate_batches": 3, "mixup_alpha": 0.3, "cutmix_alpha": 0.9,
        "mix_probability": 0.6, "mix_off_epochs": 2, "warmup_epochs": 1.5, "freeze_epochs": 1, "pretrained": "a.ckpt",
        "scheduler_step": "batch", "ema_decay": 0.97, "flip_at_test": True, "head_lr_factor": 3.0, "layer_decay": 0.8,
        "decay_norm_and_bias": False, "seed": 4, "batch_size": 6, "stop_on_nonfinite_loss": False, "accelerator": "cpu",
        "distillation_temperature": 3.0, "distillation_weight": 0.4, "auxiliary_targets": ["make"], "auxiliary_weight": 0.3,
        "teacher": "a run", "optimizer": "SGD", "optimizer_params": {"lr": 0.2},
    }  # fmt: skip
    config = load_config(overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()])
    classifier = assembly.build_classifier(config, num_classes=4)
    assert {module.p for module in classifier.model.modules() if isinstance(module, nn.Dropout)} == {0.37}
    same = ("accumulate_batches", "gradient_clip_norm", "warmup_epochs", "freeze_epochs", "scheduler_step", "ema_decay")
    same += ("flip_at_test", "seed", "batch_size", "stop_on_nonfinite_loss")
    assert {key: getattr(classifier, key) for key in same} == {key: settings[key] for key in same}
    assert classifier.groups == {"head_lr_factor": 3.0, "layer_decay": 0.8, "decay_norm_and_bias": False}
    assert classifier.optimizer == ("SGD", {"lr": 0.2})
    mixing = classifier.mixing
    (kinds,) = mixing.transform.transforms
    assert [kind.alpha for kind in kinds.transforms] == [0.3, 0.9]
    assert (mixing.transform.p, mixing.off_epochs, mixing.seed) == (0.6, 2, 4)
    teacher = Teacher(nn.Identity(), assembly.view_of(config, config.image_size), torch.arange(4))
    targets = assembly.build_targets(config, ["Audi A", "Audi B", "BMW A", "BMW B"], [teacher])
    assert (targets.distillation.temperature, targets.distillation.weight) == (3.0, 0.4)
    assert targets.auxiliary.weight == 0.3 and targets.distillation.view.size == (227, 227)
    built = assembly.build_trainer(config, tmp_path, [])
    assert (built.gradient_clip_val, built.accumulate_grad_batches) == (0.7, 3)


@pytest.mark.parametrize(
    ("changes", "crop"),
    [
        ([], "no"),
        (["crop_to_bboxes=True"], "box"),
        (["crop_to_bboxes=True", "erase_background=True", "shuffle_bounding_boxes=True"], "box on white"),
    ],
)
def test_boxes_and_the_sampler_reach_the_data(cars, changes, crop):
    where = [f"data_path={cars}", "cache_path=null", "num_workers=0", "sampler=balanced"]
    config = load_config(overrides=[*where, *changes])
    splits = assembly.load_annotations(config)
    data = assembly.build_data(config, splits)
    source = data.train.source
    assert (source.crop, data.valid.source.crop) == (crop, "no")  # as in the study
    shuffled = [*with_boxes_of_others(splits.train)]
    assert [*source.records] == (shuffled if config.shuffle_bounding_boxes else [*splits.train])
    assert [*source.records] != shuffled or config.shuffle_bounding_boxes
    assert data.sampler(data.train, shuffle=True).weights is not None
