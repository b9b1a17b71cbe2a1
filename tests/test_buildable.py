"""Configurations that the schema takes and torch does not: check_buildable reports them by key."""

import pytest

import assembly
from utils.config import load_config
from utils.errors import ConfigError

COMMON = ("cache_path=null", "accelerator=cpu", "trackers=[]", "num_epochs=5")

WRONG = [
    ("optimizer_params={lr: [1]}", "optimizer_params"),
    ("optimizer_params={betas: 3}", "optimizer_params"),
    ("optimizer_params={betas: [0.9]}", "optimizer_params"),
    ("optimizer_params={weight_decay: x}", "optimizer_params"),
    ("image_augmentations={RandomAffine: {degrees: x}}", "image_augmentations"),
    ("image_augmentations={Pad: {padding: 5000000}}", "Pad.padding: 5000000 is too large; expected at most 4,096"),
    ("image_augmentations={Resize: {size: [9, 100000]}}", "Resize.size: [9, 100000] is too large"),
    (
        "image_augmentations={RandAugment: {num_ops: 1000}}",
        "RandAugment.num_ops: 1000 is too large; expected at most 20",
    ),
    ("lr_scheduler_params={gamma: x, milestones: [3]}", "lr_scheduler_params"),
    ("lr_scheduler_params={milestones: 3}", "lr_scheduler_params"),
    ("loss_params={epsilon: x}", "loss_params"),
    ("out_channels=1000000000000", "architecture: invalid value 'ghost': its weights take"),
    ("devices=1000000000", "devices"),
    (
        "optimizer_params={fused: true, lr: 0.1}",
        "fused does not go with gradient_clip_norm and the precision bf16-mixed",
    ),
    ("resize_size=[300, 300]", "resize_size: invalid value [300, 300]: the augmentations turn an image into"),
]


@pytest.mark.parametrize(("change", "expected"), WRONG, ids=[change for change, _ in WRONG])
def test_a_wrong_value_is_reported_by_its_key(change, expected):
    with pytest.raises(ConfigError) as caught:
        clipped = ["precision=bf16-mixed", "gradient_clip_norm=1"] if "fused" in change else []
        assembly.check_buildable(load_config(overrides=[*COMMON, *clipped, change]))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "params", "epochs", "reason"),
    [
        ("OneCycleLR", "{max_lr: 0.1, total_steps: 5}", 6, "Tried to step 6 times"),
        ("LambdaLR", "{lr_lambda: 1 / (6 - epoch)}", 6, "cannot be computed for epoch 6"),
        ("LambdaLR", "{lr_lambda: 4 - epoch}", 6, "learning rate -0.001 in epoch 5"),
        ("ReduceLROnPlateau", "{patience: x}", 2, "not supported between"),
    ],
)
def test_a_schedule_that_fails_in_a_later_epoch_is_found_before_the_first(name, params, epochs, reason):
    changes = [*COMMON, f"lr_scheduler={name}", f"lr_scheduler_params={params}"]
    assembly.check_buildable(load_config(overrides=[*changes, "num_epochs=1"])) if name != "ReduceLROnPlateau" else None
    with pytest.raises(ConfigError, match="lr_scheduler_params") as caught:
        assembly.check_buildable(load_config(overrides=[*changes, f"num_epochs={epochs}"]))
    assert reason in str(caught.value)


@pytest.mark.slow  # timm takes seconds to import
def test_a_model_of_a_fixed_size_takes_no_other_in_the_test():
    fixed = ["architecture=timm/deit_tiny_patch16_224", "out_channels=null", "dropout=null", "image_size=[64, 64]"]
    with pytest.raises(ConfigError, match=r"test_image_size: invalid value \[96, 96\]: Input height \(96\)"):
        assembly.check_buildable(load_config(overrides=[*COMMON, *fixed, "test_image_size=[96, 96]"]))


def test_what_contradicts_another_key_is_reported_by_its_key():
    crop = "image_augmentations={RandomResizedCrop: {size: [227, 227]}}"
    for changes, expected in (
        (["loss_function=MultiMarginLoss", "mixup_alpha=0.2"], "mixup_alpha: invalid value 0.2: mixed images have"),
        ([crop, "resize_size=[300, 300]", "augment_images=False"], "resize_size: invalid value [300, 300]"),
    ):
        with pytest.raises(ConfigError) as caught:
            assembly.check_buildable(load_config(overrides=[*COMMON, *changes]))
        assert expected in str(caught.value) and "1 problem:" in str(caught.value)
    assembly.check_buildable(
        load_config(overrides=[*COMMON, crop, "resize_size=[300, 300]", "test_image_size=[160, 160]"])
    )
