"""What was published: the experiments, their figures, and the questions that they answer.

The figures stand in experiments/published.csv, the questions in experiments/sections.yml. The published runs C-10 and C-11
cut each photo by the box of another, so their figures belong to the files that repeat this fault; for the right boxes
nothing was published.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from utils.config import CONFIG_FILE
from utils.errors import ConfigError
from utils.nearest import nearest

EXPERIMENTS = CONFIG_FILE.parent / "experiments"
PUBLISHED = EXPERIMENTS / "published.csv"
SECTIONS = EXPERIMENTS / "sections.yml"
ALL = "all"
WRONG_BOXES = "-published-boxes"
IMAGES = (8144, 8041)  # of the published training and validation split
REPEATS = ("C-26", "C-27", "C-28", "C-29")  # four published runs with the same settings


@dataclass(frozen=True)
class Published:
    """The figures of a published run, each the best of any epoch; accuracies in percent, as means of batch means."""

    description: str
    train_acc_percent: float
    valid_acc_percent: float
    min_train_loss: float
    min_valid_loss: float
    epochs: int
    num_params: int


@dataclass(frozen=True)
class Group:
    """Experiments that vary one thing; the first is the reference that the others vary."""

    name: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A question of the study, and the groups of experiments that answer it."""

    name: str
    compared: str
    groups: tuple[Group, ...]


def experiment_names() -> list[str]:
    """Returns the names of all experiment files, C-1 first."""
    return sorted((path.stem for path in EXPERIMENTS.glob("C-*.yml")), key=place)


def place(name: str) -> tuple[int, str]:
    """Returns what to sort experiments by: their numbers."""
    return int(re.sub(r"\D", "", name) or 0), name


def choose_experiments(names: Sequence[str]) -> list[str]:
    """Returns the experiments named, each once, in the order given; "all" stands for all of them.

    Raises:
        ConfigError: There is no such experiment.
    """
    known = experiment_names()
    for name in names:
        if name != ALL and name not in known:
            raise ConfigError(f"{name}: there is no such experiment.{nearest(name, [ALL, *known])}")
    return list(dict.fromkeys(each for name in names for each in (known if name == ALL else [name])))


def read_published() -> dict[str, Published]:
    """Returns the published figures by name of experiment; an experiment that was never published is not in it."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = {row.pop("id"): row for row in csv.DictReader(file)}
    names = experiment_names()
    types = Published.__annotations__
    return {
        name: Published(**{key: types[key](text) for key, text in rows[name.removesuffix(WRONG_BOXES)].items()})
        for name in names
        if name + WRONG_BOXES not in names
    }


def describe(name: str, published: dict[str, Published]) -> str:
    """Returns what the experiment tried, with the boxes it uses where that has to be said."""
    if name in published:
        return published[name].description + ("; boxes of other photos" if name.endswith(WRONG_BOXES) else "")
    return f"{published[name + WRONG_BOXES].description}; right boxes"


def read_sections() -> list[Section]:
    """Returns the questions of the study, in its order."""
    with SECTIONS.open(encoding="utf-8") as file:
        return [
            Section(
                each["name"], each["compared"], tuple(Group(g["name"], tuple(g["experiments"])) for g in each["groups"])
            )
            for each in yaml.safe_load(file)
        ]
