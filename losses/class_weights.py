"""Weights of the classes in a loss."""

from collections.abc import Mapping, Sequence
from typing import Literal

from utils.errors import ConfigError
from utils.nearest import nearest


def class_weights(
    setting: Literal["balanced"] | Mapping[str, float], counts: Sequence[int], class_names: Sequence[str]
) -> list[float]:
    """Returns the weight of each class.

    Args:
        setting: "balanced": images / (classes × images of the class), so that each class weighs the same in an epoch, as in
            King and Zeng, "Logistic Regression in Rare Events Data", 2001. Or the weights by name, 1 for the others.
        counts: Training images of each class. A class without any has the weight 1.
        class_names: The name of each class.

    Raises:
        ConfigError: There is no such class.
    """
    if setting == "balanced":
        trained = [count for count in counts if count]
        return [sum(trained) / (len(trained) * count) if count else 1.0 for count in counts]
    if unknown := [name for name in setting if name not in class_names]:
        raise ConfigError(
            f"class_weights: the data set has no class {unknown[0]!r}.{nearest(unknown[0], class_names)[:200]}"
        )
    return [float(setting.get(name, 1.0)) for name in class_names]
