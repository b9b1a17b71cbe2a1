"""The published experiments, their results, and the questions that they answer.

experiments/published.csv has the results, experiments/sections.yml the questions. The published runs C-10 and C-11 cut each
image by the box of another one, so their results belong to the files that repeat this fault. Nothing was published for the
right boxes.
"""

import csv
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from utils.config import CONFIG_FILE, load_config
from utils.errors import ConfigError
from utils.nearest import nearest

EXPERIMENTS = CONFIG_FILE.parent / "experiments"
PUBLISHED = EXPERIMENTS / "published.csv"
SECTIONS = EXPERIMENTS / "sections.yml"
ALL = "all"
WRONG_BOXES = "-published-boxes"
IMAGES = (8144, 8041)  # in the published training and validation splits
DROP = 0.5  # a first drop leaves at most this share of the learning rate
TASK = f"227×227, whole photos, {IMAGES[1]:,} test images"
REPEATS = ("C-26", "C-27", "C-28", "C-29")  # four published runs of the same settings


@dataclass(frozen=True)
class Published:
    """The results of a published run, each the best of any epoch; accuracies in percent, as means of batch means.

    Attributes:
        first_drop: The first epoch, counted from 0, with at most `DROP` of the learning rate of the epoch before; None without
            one.
    """

    description: str
    train_acc_percent: float
    valid_acc_percent: float
    min_train_loss: float
    min_valid_loss: float
    epochs: int
    num_params: int
    first_drop: int | None


class FirstDrop(NamedTuple):
    """A published run whose learning rate drops: the epoch of the first drop, counted from 0, and the best accuracy, %."""

    name: str
    epoch: int
    accuracy: float
    weight_decay: float
    is_plateau: bool

    @property
    def point(self) -> tuple[float, float]:
        return self.epoch, self.accuracy


class Line(NamedTuple):
    """A least-squares line through `FirstDrop.point`, and Pearson's r."""

    slope: float
    intercept: float
    correlation: float

    def at(self, epoch: int) -> float:
        return self.intercept + self.slope * epoch


@dataclass(frozen=True)
class Group:
    """Experiments that vary one thing. The first is the reference."""

    name: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A question of the study, and the groups of experiments that answer it."""

    name: str
    groups: tuple[Group, ...]


def experiment_files() -> dict[str, Path]:
    """Returns the configuration files of the study by experiment, C-1 first."""
    files = {path.stem: path for path in EXPERIMENTS.glob("C-*.yml")}
    return {name: files[name] for name in sorted(files, key=sort_key)}


def sort_key(name: str) -> tuple[bool, int, str]:
    """Sorts the study's experiments by number, and all others behind them."""
    number = re.match(r"C-(\d+)", name)
    return number is None, int(number[1]) if number else 0, name


def choose_experiments(names: Sequence[str]) -> dict[str, Path]:
    """Returns the configuration file of each named experiment, in the given order.

    Args:
        names: Experiments of the study, "all" for all of these, or paths of YAML files. A file is named by its
            experiment_id, or else by its file name.

    Raises:
        ConfigError: There is no such experiment or file, or two files have the same name.
    """
    study = experiment_files()
    chosen: dict[str, Path] = {}
    for name in names:
        if name == ALL:
            found = study
        elif name in study:
            found = {name: study[name]}
        elif Path(name).suffix in (".yml", ".yaml"):
            found = _named_file(Path(name), study)
        else:
            hint = nearest(name, [ALL, *study])
            raise ConfigError(f"{name}: neither an experiment of the study nor a .yml file.{hint}")
        for key, file in found.items():
            if chosen.setdefault(key, file).resolve() != file.resolve():
                raise ConfigError(
                    f"{file} and {chosen[key]} have the same name, {key}; give one of them another experiment_id"
                )
    return chosen


def _named_file(file: Path, study: dict[str, Path]) -> dict[str, Path]:
    if study.get(file.stem, Path()).resolve() == file.resolve():
        return {file.stem: study[file.stem]}
    name = load_config(file).experiment_id or file.stem
    if name in study:
        raise ConfigError(f"{file}: experiment_id {name} is an experiment of the study; give this file another one")
    return {name: file}


def read_published() -> dict[str, Published]:
    """Returns the published results by experiment; experiments without any are missing."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = {row.pop("id"): row for row in csv.DictReader(file)}
    types = Published.__annotations__ | {"first_drop": lambda text: int(text) if text else None}
    names = experiment_files()
    return {
        name: Published(**{key: types[key](text) for key, text in rows[name.removesuffix(WRONG_BOXES)].items()})
        for name in names
        if name + WRONG_BOXES not in names
    }


def first_drops(min_weight_decay: float) -> tuple[list[FirstDrop], list[FirstDrop], Line]:
    """Returns the published runs whose learning rate drops: with at least this weight decay, with less, and a line.

    The line is fitted to the first of the two lists. Runs whose rate falls in every epoch are in neither.
    """
    drops = []
    for name, run in read_published().items():
        if run.first_drop is not None:
            config = load_config(experiment_files()[name])
            decay = config.optimizer_params.get("weight_decay", 0.0)
            is_plateau = config.lr_scheduler == "ReduceLROnPlateau"
            drops.append(FirstDrop(name, run.first_drop, run.valid_acc_percent, decay, is_plateau))
    fitted = [drop for drop in drops if drop.weight_decay >= min_weight_decay]
    points = [drop.epoch for drop in fitted], [drop.accuracy for drop in fitted]
    line = Line(*statistics.linear_regression(*points), statistics.correlation(*points))
    return fitted, [drop for drop in drops if drop.weight_decay < min_weight_decay], line


def describe(name: str, published: dict[str, Published]) -> str:
    """Returns what an experiment of the study tried, with the kind of boxes where it matters; "" for any other."""
    if name in published:
        return published[name].description + ("; boxes of other photos" if name.endswith(WRONG_BOXES) else "")
    if name + WRONG_BOXES in published:
        return f"{published[name + WRONG_BOXES].description}; right boxes"
    return ""


def read_sections() -> list[Section]:
    """Returns the questions of the study, in its order."""
    with SECTIONS.open(encoding="utf-8") as file:
        return [
            Section(each["name"], tuple(Group(g["name"], tuple(g["experiments"])) for g in each["groups"]))
            for each in yaml.safe_load(file)
        ]
