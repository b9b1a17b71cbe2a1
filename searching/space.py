"""What a search varies: axes of settings, the space that they span, and the configuration of a trial. No torch here."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from optuna.trial import Trial

from utils.config import LOCAL_KEYS, Config, parse_config
from utils.config.schema import RENAMED_KEYS
from utils.config.yaml_source import Key, SourcedMapping

METRICS = get_args(Config.model_fields["best_metric"].annotation)
# Multiply-adds of an image, parameters, and milliseconds of an image on one CPU thread.
COSTS = ("multiply_adds", "num_params", "latency")
MAX_TRIALS = 100_000
MAX_CORNERS = 64  # that are built before anything trains


@dataclass(frozen=True)
class Pruning:
    """Successive halving: at each rung the best 1 / `factor` of the trials continue.

    Rung r of R lies at the share factor^(r − R) of a trial's own schedule, so that a long schedule is compared with a short
    one before either lowers its learning rate.
    """

    factor: int
    rungs: int

    @property
    def min_epochs(self) -> int:
        """The shortest schedule whose rungs differ."""
        return self.factor**self.rungs

    def stops(self, num_epochs: int) -> list[tuple[int, int]]:
        """Returns each rung's step in Optuna and its number of finished epochs."""
        steps = [self.factor**rung for rung in range(self.rungs)]
        return [(step, math.ceil(num_epochs * step / self.min_epochs)) for step in steps]


@dataclass(frozen=True)
class Choice:
    """An axis of named choices; each sets one key or several."""

    name: str
    place: str
    options: dict[str, dict[str, Any]]  # label → {dotted key: value}

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for changes in self.options.values() for key in changes))

    @property
    def identity(self) -> list[Any]:
        return [self.name, list(self.options.items())]  # in this order: Optuna knows choices by their places

    @property
    def ends(self) -> list[str]:
        return list(self.options)

    points = ends

    @property
    def count(self) -> int:
        return len(self.options)

    def suggest(self, trial: Trial) -> str:
        return trial.suggest_categorical(self.name, list(self.options))

    def changes(self, label: str) -> dict[str, Any]:
        return self.options[label]


@dataclass(frozen=True)
class Range:
    """An axis of numbers, both ends included."""

    name: str
    place: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def keys(self) -> list[str]:
        return [self.name]

    @property
    def identity(self) -> list[Any]:
        return [self.name, self.low, self.high, self.step, self.log]

    @property
    def ends(self) -> list[float]:
        return [self.low, self.high]

    @property
    def is_continuous(self) -> bool:
        return self.log or (self.step is None and isinstance(self.low, float))

    @property
    def count(self) -> int:
        """Number of `points`."""
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-8) + 1

    @property
    def points(self) -> list[float]:
        return [self.low + number * (self.step or 1) for number in range(self.count)]

    def suggest(self, trial: Trial) -> float:
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def changes(self, value: float) -> dict[str, Any]:
        return {self.name: value}


@dataclass(frozen=True)
class Repeats:
    """An axis of earlier trials, whose settings are trained again."""

    name: str
    options: dict[int, dict[str, Any]]  # number of the trial → {dotted key: value}

    place = "search.py"

    @property
    def identity(self) -> list[Any]:
        return [self.name]

    def suggest(self, trial: Trial) -> int:
        return trial.suggest_int(self.name, 0, MAX_TRIALS)

    def changes(self, number: int) -> dict[str, Any]:
        return self.options[number]


Axis = Choice | Range | Repeats
Values = Mapping[str, Any]  # of the axes, by their names


@dataclass(frozen=True)
class Space:
    """What a search tries, and how.

    Attributes:
        file: The YAML file.
        source: The base configuration with what the search fixes.
        metrics: One of `METRICS`, and in a search with two metrics one of `COSTS`.
        points: Of a grid, in their order; None for a sampler of Optuna.
        trials, hours: The budget: trials, and hours of training of all trials together; None: no limit.
    """

    file: Path
    base: Path
    name: str
    source: SourcedMapping
    axes: tuple[Axis, ...]
    metrics: tuple[str, ...]
    sampler: str
    points: tuple[dict[str, Any], ...] | None
    trials: int | None
    hours: float | None
    pruning: Pruning | None
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        return self.metrics[0]

    @property
    def accuracy(self) -> str:
        """The accuracy by which differences are judged: the metric, or of a search for a low loss the top-1 accuracy."""
        return self.metric if self.metric.endswith("acc") else "valid_acc"

    @property
    def identity(self) -> list[Any]:
        """What must be equal for trials to be compared: settings that shape the result, axes, metrics and rungs."""
        settings = {key: value for key, value in self.source.values.items() if key not in LOCAL_KEYS}
        pruning = self.pruning and [self.pruning.factor, self.pruning.rungs]
        return [settings, [axis.identity for axis in self.axes], self.metrics, pruning]

    @property
    def directions(self) -> list[str]:
        return ["maximize" if metric.endswith("acc") else "minimize" for metric in self.metrics]

    def changes(self, values: Values) -> dict[str, Any]:
        """Returns what the values of all axes set, by dotted keys."""
        return {key: value for axis in self.axes for key, value in axis.changes(values[axis.name]).items()}

    def config(self, values: Values) -> Config:
        """Returns the configuration of a trial.

        Raises:
            ConfigError: It is not valid.
        """
        source = copy.deepcopy(self.source)
        for axis in self.axes:
            for key, value in axis.changes(values[axis.name]).items():
                source.set(path_of(key), value, axis.place)
        return parse_config(source)

    def corners(self) -> list[dict[str, Any]]:
        """Returns the combinations of the ends of all ranges and all choices; of a large space, each end once or more."""
        ends = {axis.name: axis.ends for axis in self.axes}
        if math.prod(map(len, ends.values())) <= MAX_CORNERS:
            return [dict(zip(ends, values, strict=True)) for values in product(*ends.values())]
        longest = max(map(len, ends.values()))
        return [{name: each[number % len(each)] for name, each in ends.items()} for number in range(2 * longest)]


def describe(values: Values) -> str:
    """Returns the values of a trial in one line."""
    return ", ".join(f"{name}={round_number(value)}" for name, value in values.items())


def round_number(value: Any) -> str:
    """Returns a number with four digits, and text unchanged."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def path_of(key: str) -> Key:
    """Returns the path of a dotted key, its first part under its present name."""
    first, *rest = key.split(".")
    return (RENAMED_KEYS.get(first, first), *rest)
