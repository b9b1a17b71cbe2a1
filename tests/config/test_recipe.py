"""The keys of the recipe: contradictions, and what the start of a run shows."""

import pytest

from utils.config import load_config
from utils.config.recipe import recipe_lines
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["freeze_epochs=200", "pretrained=a.pth"], "freeze_epochs: 200; expected fewer than num_epochs: 200"),
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
    ],
)  # fmt: skip
def test_a_contradiction_is_one_error(overrides, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert expected in str(caught.value) and "1 problem:" in str(caught.value)


def test_the_recipe_lists_what_is_on_and_nothing_for_the_study():
    assert recipe_lines(load_config()) == []
    changes = ["ema_decay=0.99", "warmup_epochs=1", "decay_norm_and_bias=False", "num_epochs=9", "num_workers=0"]
    assert recipe_lines(load_config(overrides=changes)) == [
        "decay_norm_and_bias: False", "ema_decay: 0.99", "warmup_epochs: 1.0",
    ]  # fmt: skip
