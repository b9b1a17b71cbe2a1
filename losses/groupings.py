"""Groupings of the classes: the make and the body type in the names of Stanford Cars' classes, or a table."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.config.yaml_source import read_yaml_file, shown
from utils.errors import ConfigError
from utils.nearest import listed, nearest

# A name begins with its make, a single word but for these.
MAKES = ("AM General", "Alfa Romeo", "Aston Martin", "Land Rover", "Mercedes Benz", "Rolls Royce")
# The last of these words counts: a "Phantom Drophead Coupe Convertible" is a convertible.
BODY_TYPES = ("Cab", "Convertible", "Coupe", "Hatchback", "Minivan", "Sedan", "SUV", "SuperCab", "Van", "Wagon")
NO_TYPE = "none"
TABLES = (".csv", ".yml", ".yaml")
METRICS = ("mean_class", "raw", "raw_top5", "top5")  # as in valid_top5_acc
MAX_NAMED = 3  # classes in a message


def make(class_name: str) -> str:
    """Returns the make of a class such as "AM General Hummer SUV 2000"."""
    words = re.split(r"[\s_]+", class_name.strip())
    two = " ".join(words[:2]).casefold()
    return next((name for name in MAKES if name.casefold() == two), words[0])


def body_type(class_name: str) -> str:
    """Returns the body type of a class such as "AM General Hummer SUV 2000", `none` for a name without one."""
    types = {name.casefold(): name.replace("SuperCab", "Cab") for name in BODY_TYPES}
    found = [types[word] for word in re.split(r"[\s_]+", class_name.casefold()) if word in types]
    return found[-1] if found else NO_TYPE


GROUPINGS: dict[str, Callable[[str], str]] = {"make": make, "body_type": body_type}


def group_classes(targets: Sequence[str], class_names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns the group of each class, for each grouping by its name.

    Args:
        targets: Names in `GROUPINGS`, or tables: CSV with a column of classes and one of groups for each grouping, which its
            header names; YAML, class: group, a grouping with the name of the file.
        class_names: The classes of the data set.

    Raises:
        ConfigError: A target is neither; a table lacks a class; or a grouping has one group, or one for each class.
    """
    found: dict[str, dict[str, str]] = {}
    for target in targets:
        if target in GROUPINGS:
            tables: Mapping[str, Mapping[str, str]] = {target: {name: GROUPINGS[target](name) for name in class_names}}
        elif Path(target).suffix.lower() in TABLES:
            tables = _read_table(Path(target))
        else:
            raise ConfigError(
                f"auxiliary_targets: {shown(target)}; expected {', '.join(GROUPINGS)} or a table ({', '.join(TABLES)})."
                f"{nearest(target, list(GROUPINGS))}"
            )
        for name, groups in tables.items():
            if name in found:
                raise ConfigError(f"auxiliary_targets: two groupings have the name {shown(name)}")
            found[name] = _of_classes(f"{target}: {name}" if target != name else name, groups, class_names)
    return found


def numbered(groups: Mapping[str, str], class_names: Sequence[str]) -> list[int]:
    """Returns the number of the group of each class; groups are numbered in the order of their names."""
    numbers = {group: number for number, group in enumerate(sorted(set(groups.values())))}
    return [numbers[groups[name]] for name in class_names]


def _of_classes(place: str, groups: Mapping[str, str], class_names: Sequence[str]) -> dict[str, str]:
    if missing := [name for name in class_names if name not in groups]:
        raise ConfigError(
            f"auxiliary_targets: {place} has no group for {len(missing)} of {len(class_names)} classes: "
            f"{listed([repr(name) for name in missing], MAX_NAMED)}.{nearest(missing[0], list(groups))[:200]}"
        )
    used = {name: groups[name] for name in class_names}
    if (count := len(set(used.values()))) in (1, len(class_names)):
        kind = "one group for all classes" if count == 1 else "a group of its own for each class"
        raise ConfigError(f"auxiliary_targets: {place} has {kind}, which teaches nothing; remove it")
    return used


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    """Returns the groupings in a table, each class → group."""
    if path.suffix.lower() != ".csv":
        groups = read_yaml_file(path).values.items()
        return {_metric(path.stem, path): {name: str(group) for name, group in groups if isinstance(group, (str, int))}}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV table in UTF-8 with a header"
        raise ConfigError(f"auxiliary_targets: {path} cannot be read: {reason}") from error
    if wrong := [number for number, row in enumerate(rows, start=2) if len(row) != len(header)]:
        raise ConfigError(f"auxiliary_targets: {path}, row {wrong[0]}: expected {len(header)} values, as in the header")
    if len(header) < 2:
        raise ConfigError(
            f"auxiliary_targets: {path} has one column; expected classes, and the groups of each grouping"
        )
    if twice := [name for number, name in enumerate(header[1:]) if name in header[1 : 1 + number]]:
        raise ConfigError(f"auxiliary_targets: {path} has two columns {shown(twice[0])}; expected one")
    first: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        if first.setdefault(row[0], row) != row:
            raise ConfigError(
                f"auxiliary_targets: {path}, row {number}: {shown(row[0])} has other groups in a row above"
            )
    return {
        _metric(name, path): {row[0]: group for row in rows if (group := row[column].strip())}
        for column, name in enumerate(header)
        if column
    }


def _metric(name: str, path: Path) -> str:
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ConfigError(f"auxiliary_targets: {path}: {shown(name)}; expected a name of letters, digits and _")
    if name in METRICS:
        raise ConfigError(f"auxiliary_targets: {path}: {shown(name)} is the name of a metric; choose another")
    return name
