"""The keys of the recipe: contradictions, and what the start of a run shows."""

import pytest
import yaml

from utils.config import CONFIG_FILE, load_config
from utils.config.checks import with_sizes
from utils.config.recipe import recipe_lines
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["freeze_epochs=201", "pretrained=a.pth"], "freeze_epochs: 201; expected at most num_epochs: 200"),
        (["warmup_epochs=200"], "warmup_epochs: 200; expected fewer than num_epochs: 200"),
        (["warmup_epochs=5.5", "num_epochs=5"], "warmup_epochs: 5.5; expected fewer than num_epochs: 5"),
        (["freeze_epochs=1"], "freeze_epochs: needs pretrained"),
        (["normalization_params_rgb=pretrained"], "normalization_params_rgb: 'pretrained' needs pretrained weights"),
        (["scheduler_step=batch", "lr_scheduler=null", "lr_scheduler_params=null"], "scheduler_step: has no effect without"),
        (
            ["scheduler_step=batch", "lr_scheduler=ReduceLROnPlateau", "lr_scheduler_params=null"],
            "scheduler_step: ReduceLROnPlateau is stepped once an epoch",
        ),
        (["optimizer=LBFGS", "optimizer_params=null", "layer_decay=0.5"], "layer_decay: LBFGS has one group"),
        (["optimizer=Rprop", "optimizer_params=null", "decay_norm_and_bias=False"], "Rprop has no weight decay"),
        (["ema_decay=1"], "ema_decay: 1; expected less than 1"),
        (["mixup_alpha=0"], "mixup_alpha: 0; expected"),
        (["mixup_alpha=0.2", "mix_off_epochs=200"], "mix_off_epochs: 200; expected fewer than num_epochs: 200"),
        (["mix_probability=0.5"], "mix_probability: has no effect without mixup_alpha or cutmix_alpha"),
        (["resize_size=[300, 200]"], "resize_size: [300, 200] is smaller than image_size, [227, 227]"),
        (["test_image_size=[16, 16]"], "test_image_size: [16, 16] is too small for ghost"),
        (["pretrained=False"], "pretrained: False; expected"),
        (["distillation_weight=0.5"], "distillation_weight: has no effect without teacher; write 0.9"),
        (["distillation_temperature=4"], "distillation_temperature: has no effect without teacher; write 2"),
        (["auxiliary_weight=1"], "auxiliary_weight: has no effect without auxiliary_targets; write 0.2"),
        (["teacher=[a, b, a]"], "teacher: ['a', 'b', 'a'] names one twice"),
        (["keep_checkpoints=[5, 201]"], "keep_checkpoints: 201; expected at most num_epochs: 200"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_error(overrides, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert expected in str(caught.value) and "1 problem:" in str(caught.value)


def test_a_file_without_a_base_is_checked_with_the_defaults_of_what_it_does_not_set(tmp_path):
    shipped = yaml.safe_load(CONFIG_FILE.read_text())
    del shipped["pretrained"], shipped["teacher"]
    changed = shipped | {"base": None, "freeze_epochs": 1, "distillation_weight": 0.5}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match=r"2 problems:(?s:.)*freeze_epochs: needs pretrained(?s:.)*without teacher"):
        load_config(tmp_path / "mine.yml")


def test_the_recipe_lists_what_is_on_and_nothing_for_the_study():
    assert recipe_lines(load_config()) == []
    changes = ["ema_decay=0.99", "warmup_epochs=1", "decay_norm_and_bias=False", "num_epochs=9", "num_workers=0"]
    assert recipe_lines(load_config(overrides=changes)) == [
        "decay_norm_and_bias: False", "ema_decay: 0.99", "warmup_epochs: 1.0",
    ]  # fmt: skip


def test_the_recipe_says_what_the_accuracy_of_mixed_images_is():
    lines = recipe_lines(load_config(overrides=["cutmix_alpha=1.0", "mix_off_epochs=3"]))
    note = "train_acc of mixed images is against the label with the larger share"
    assert lines == ["cutmix_alpha: 1.0", "mix_off_epochs: 3", note]


def test_crops_have_the_size_of_the_models_images_unless_theirs_is_given():
    crops = "image_augmentations={RandomResizedCrop: {scale: [0.5, 1.0]}, RandomCrop: null, CenterCrop: {size: 9}}"
    config = load_config(overrides=["image_size=[40, 50]", crops])
    assert with_sizes(config.image_augmentations, config.image_size) == {
        "RandomResizedCrop": {"size": [40, 50], "scale": [0.5, 1.0]},
        "RandomCrop": {"size": [40, 50]},
        "CenterCrop": {"size": 9},
    }
