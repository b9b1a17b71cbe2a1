"""Class weights: balanced by scikit-learn's definition, by name, and a loss that takes none."""

import pytest

from losses.class_weights import class_weights
from utils.config import load_config
from utils.errors import ConfigError


def test_balanced_classes_weigh_the_same_in_an_epoch():
    weights = class_weights("balanced", [10, 30, 0, 20], "abcd")
    assert weights == pytest.approx([60 / 30, 60 / 90, 1, 60 / 60])
    assert [weight * count for weight, count in zip(weights, [10, 30, 0, 20], strict=True)] == pytest.approx(
        [20, 20, 0, 20]
    )


def test_weights_by_name_and_an_unknown_name():
    assert class_weights({"Golf": 2.5}, [1, 1], ["Corsa", "Golf"]) == [1.0, 2.5]
    with pytest.raises(ConfigError, match=r"no class 'Gulf'\. Did you mean.* 'Golf'"):
        class_weights({"Gulf": 2.0}, [1, 1], ["Corsa", "Golf"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["loss_function=MultiMarginLoss", "class_weights=balanced"], None),
        (["loss_function=KLDivLoss", "class_weights=balanced"], "class_weights: KLDivLoss takes no weights"),
        (["loss_params={weight: [1, 2]}", "class_weights=balanced"], "class_weights: loss_params.weight is set too"),
        (["class_weights={Golf: 0}"], "class_weights: {'Golf': 0}; expected 'balanced' or greater than 0"),
        (["test_fraction=0.2"], "test_fraction: has no effect without validation_fraction"),
        (["split_seed=1"], "split_seed: has no effect without validation_fraction"),
        (["validation_fraction=0.6", "test_fraction=0.4"], "leave no training images"),
        (["best_metric=valid_accuracy"], "best_metric"),
    ],
)
def test_contradictions_are_named(changes, message):
    if message is None:
        load_config(overrides=changes)
        return
    with pytest.raises(ConfigError) as error:
        load_config(overrides=changes)
    assert message in str(error.value)
