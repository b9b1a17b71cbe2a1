"""The study in fewer epochs: all that its schedules count in epochs, divided by one factor.

For a machine on which 56 runs of some hundred epochs would take weeks. It is another task than the published one: the network
sees each photo less often.
"""

import json
import math
from collections.abc import Iterable

from utils.config import Config
from utils.config.expressions import compress_time

TAG = "shortened "  # before the factor, in a run's tags: they tell it from a run that was set up so by hand
COUNTS = ("milestones", "patience")  # parameters of the study's schedulers that are epochs


def shortened(config: Config, factor: int) -> tuple[str, ...]:
    """Returns what `--set` has to change of an experiment so that its schedule is `factor` times as fast."""
    if factor == 1:
        return ()
    from models.optimization import stopping_patience  # imports torch, which takes seconds

    patience = stopping_patience(
        config.early_stopping_patience,
        lr_scheduler=config.lr_scheduler,
        lr_scheduler_params=config.lr_scheduler_params,
    )
    changes = {
        "num_epochs": _divided(config.num_epochs, factor),
        "early_stopping_patience": patience and _divided(patience, factor),
    }
    for name, value in (config.lr_scheduler_params or {}).items():
        if name in COUNTS:
            changes[f"lr_scheduler_params.{name}"] = _divided(value, factor)
        elif name == "lr_lambda":
            changes[f"lr_scheduler_params.{name}"] = compress_time(value, factor)
    return tuple(f"{name}={json.dumps(value)}" for name, value in changes.items())


def factor_of(tags: Iterable[str] | None) -> int:
    """Returns the factor that a run's tags name, 1 for a run of full length."""
    found = (tag.removeprefix(TAG) for tag in tags or () if tag.startswith(TAG))
    return next((int(factor) for factor in found if factor.isdecimal()), 1)


def _divided(epochs: int | list[int], factor: int) -> int | list[int]:
    """Rounds up, so that nothing becomes 0 epochs."""
    return [_divided(each, factor) for each in epochs] if isinstance(epochs, list) else math.ceil(epochs / factor)
