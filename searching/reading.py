"""Reads a space from its YAML file and answers every mistake in it at once. No torch here, save to build the corners."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from searching.space import COSTS, MAX_TRIALS, METRICS, Choice, Pruning, Range, Space, describe, path_of
from utils.config import CONFIG_FILE, LOCAL_KEYS, Config, ConfigError, load_config
from utils.config.problems import Problem, close_keys, schema_problems
from utils.config.yaml_source import Key, SourcedMapping, read_yaml_file, shown
from utils.nearest import nearest

SET_BY_SEARCH = {
    "output_path": "use --output",
    "experiment_id": "it names the search",
    "tags": "they name the trial",
    "description": "it has the trial's settings",
    "best_metric": "it is the metric of the search",
    "devices": "each trial has one",
    "num_nodes": "each trial has one device",
}
LUCK = "the best of several seeds is the luckiest one; --confirm shows how much they differ"
MAX_POINTS = 10_000  # of a grid


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Budget(_Section):
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None


class _Pruning(_Section):
    factor: Annotated[int, Field(ge=2, le=100)] = 3
    rungs: Annotated[int, Field(ge=1, le=10)] = 2


class _File(_Section):
    base: Annotated[str, Field(min_length=1)] | None = None
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    set: dict[str, Any] = {}
    vary: Annotated[dict[str, Any], Field(min_length=1)]
    metric: str | Annotated[list[str], Field(min_length=2, max_length=2)] = "valid_acc"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    budget: _Budget = _Budget()
    pruning: _Pruning | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def read_space(path: Path, *, overrides: Sequence[str] = (), trials: int | None = None) -> Space:
    """Reads the space in the file `path` and checks the configuration of each corner, without building anything.

    Args:
        path: A YAML file.
        overrides: As of `--set`, for all trials; they replace what the space sets.
        trials: Number of trials, instead of that of the budget.

    Raises:
        ConfigError: Lists every problem with its place.
    """
    read = read_yaml_file(path)
    try:
        file = _File.model_validate(read.values)
    except ValidationError as error:
        sections = {"budget": _Budget.model_fields, "pruning": _Pruning.model_fields}
        raise _error(path, _lines(read, schema_problems(error, sections=sections, top=_File.model_fields))) from error
    if trials is not None:
        file = file.model_copy(update={"budget": file.budget.model_copy(update={"trials": trials})})
    base = CONFIG_FILE if file.base is None else path.resolve().parent / Path(file.base).expanduser()
    try:
        source = load_config(base, overrides=overrides).source
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}" if not overrides else str(error)) from error
    from_command = [override.partition("=")[0].strip() for override in overrides]
    for key in from_command:
        if reason := SET_BY_SEARCH.get(path_of(key)[0]):
            raise ConfigError(f"--set {key}: cannot be set here: {reason}")
    source = copy.deepcopy(source)
    problems: list[Problem] = []
    for key, value in file.set.items():
        found = list(_key_problems(("set", key), key))
        problems += found
        if not found and not any(_overlap(key, given) for given in from_command):
            problems += _set(source, key, value, read.place(("set", key)), ("set", key))
    axes = tuple(axis for name in file.vary if (axis := _axis(name, file.vary[name], read, source, problems)))
    problems += _axes_problems(axes, list(file.set), from_command)
    metrics = (file.metric,) if isinstance(file.metric, str) else tuple(file.metric)
    problems += _plan_problems(file, metrics, axes)
    name = file.name or path.stem
    fixed = {"experiment_id": name, "devices": 1, "num_nodes": 1}
    fixed |= {"best_metric": metrics[0]} if metrics[0] in METRICS else {}
    if source.values.get("validation_fraction") is not None and source.values.get("split_seed") is None:
        fixed["split_seed"] = source.values.get("seed", 0)  # so that repeats with other seeds have the same images
    for key, value in fixed.items():
        source.set((key,), value, "search.py")
    points = None
    if file.sampler == "grid" and not problems:
        points = tuple(
            dict(zip((axis.name for axis in axes), values, strict=True))
            for values in product(*(axis.points for axis in axes))
        )
    space = Space(
        file=path,
        base=base,
        name=name,
        source=source,
        axes=axes,
        metrics=metrics,
        sampler=file.sampler,
        points=points,
        trials=file.budget.trials,
        hours=file.budget.hours,
        pruning=file.pruning and Pruning(**file.pruning.model_dump()),
        seed=file.seed,
        overrides=tuple(overrides),
    )
    if lines := [*_lines(read, problems), *_corner_problems(space)]:
        raise _error(path, lines)
    return space


def check_corners(space: Space) -> None:
    """Builds the parts of each corner once on the meta device; imports torch.

    Raises:
        ConfigError: Lists every corner that cannot be built.
    """
    from assembly import check_buildable, resolve_pretrained

    found: dict[str, str] = {}
    for corner in space.corners():
        try:
            check_buildable(resolve_pretrained(space.config(corner)))
        except ConfigError as error:
            for line in str(error).splitlines()[1:]:
                found.setdefault(line, f"{line} (trial with {describe(corner)})")
    if found:
        raise _error(space.file, list(found.values()))


def _set(
    source: SourcedMapping, key: str, value: Any, place: str, path: Key, *, only_try: bool = False
) -> Iterator[Problem]:
    try:
        (copy.deepcopy(source) if only_try else source).set(path_of(key), value, place)
    except ConfigError as error:
        yield path, str(error).strip()


def _overlap(first: str, second: str) -> bool:
    """Returns whether one of two dotted keys is the other one or lies below it."""
    one, other = path_of(first), path_of(second)
    return one[: len(other)] == other[: len(one)]


def _key_problems(path: Key, key: str) -> Iterator[Problem]:
    top = path_of(key)[0]
    if top not in Config.model_fields:
        close = close_keys(top)
        hint = f"Did you mean {close[0]!r}?" if close else "config.yml lists all keys."
        own = " Only choices written as {name: {key: value}} can have a name of their own."
        yield path, f"unknown key. {hint}{own if path == ('vary', key) else ''}"
    elif top == "seed" and path[0] == "vary":
        yield path, f"cannot vary: {LUCK}"
    elif top in SET_BY_SEARCH:
        yield path, f"cannot be set here: {SET_BY_SEARCH[top]}"


def _axis(
    name: str, values: Any, read: SourcedMapping, source: SourcedMapping, problems: list[Problem]
) -> Choice | Range | None:
    """Returns the axis `name`; None where `problems` were added."""
    path = ("vary", name)
    before = len(problems)
    if isinstance(values, list):
        options = {value if isinstance(value, str) else json.dumps(value): {name: value} for value in values}
        if not values:
            problems.append((path, "no choice is left; expected a list such as [0.1, 0.2]"))
        elif len(options) < len(values):
            problems.append((path, f"{shown(values)}: the same choice twice"))
        axis = Choice(name, read.place(path), options)
    elif isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        axis = Choice(name, read.place(path), values)
        for label, changes in values.items():
            if not changes:
                problems.append(((*path, label), "sets nothing; expected keys of a configuration"))
    elif isinstance(values, dict):
        axis = _range(name, values, read.place(path), source, problems)
    else:
        problems.append(
            (path, f"{shown(values)}; expected a list of choices, {{low: 0.1, high: 1}}, or {{name: {{key: value}}}}")
        )
        return None
    if axis is None:
        return None
    for key in axis.keys:
        label = next((label for label in values if key != name and key in values[label]), None)
        place = path if label is None else (*path, label, key)
        problems += _key_problems(place, key)
        if path_of(key)[0] in {*LOCAL_KEYS} - {*SET_BY_SEARCH}:
            problems.append((place, f"it does not change the result; use --set {key}=…"))
        problems += _set(source, key, None, "", place, only_try=True)
    return axis if len(problems) == before else None


def _range(
    name: str, values: dict[str, Any], place: str, source: SourcedMapping, problems: list[Problem]
) -> Range | None:
    path, before = ("vary", name), len(problems)
    kinds = {"low": (int, float), "high": (int, float), "step": (int, float), "log": bool}
    for key, value in values.items():
        if key not in kinds:
            problems.append(((*path, key), f"unknown key.{nearest(key, kinds)}"))
        elif not isinstance(value, kinds[key]) or (isinstance(value, bool) and key != "log"):
            problems.append(
                ((*path, key), f"{shown(value)}; expected {'True or False' if key == 'log' else 'a number'}")
            )
    missing = [key for key in ("low", "high") if key not in values]
    if missing and len(problems) == before:
        problems.append((path, f"the key {missing[0]!r} is missing"))
    if len(problems) > before:
        return None
    low, high, step, log = values["low"], values["high"], values.get("step"), values.get("log", False)
    present: Any = source.values
    for part in path_of(name):
        present = present.get(part) if isinstance(present, dict) else None
    if isinstance(present, float) or not all(isinstance(number, int) for number in (low, high, step or 1)):
        low, high, step = float(low), float(high), step if step is None else float(step)
    if low >= high:
        problems.append((path, f"low {low:g}, high {high:g}: the range is empty"))
    if log and low <= 0:
        problems.append(((*path, "low"), f"{low:g}; expected a number above 0 with log: True"))
    if log and step is not None:
        problems.append(((*path, "step"), "cannot be combined with log: True"))
    if step is not None and not 0 < step <= high - low:
        problems.append(((*path, "step"), f"{step:g}; expected a number above 0 within the range"))
    return Range(name, place, low, high, step, log)


def _axes_problems(
    axes: Sequence[Choice | Range], fixed: Sequence[str], from_command: Sequence[str]
) -> Iterator[Problem]:
    """Yields a problem for each key that is set twice."""
    for number, axis in enumerate(axes):
        for key in axis.keys:
            for other in axes[:number]:
                if any(_overlap(key, each) for each in other.keys):
                    yield ("vary", axis.name), f"{key} is set by {other.name} too; keep one of them"
            if any(_overlap(key, each) for each in fixed):
                yield ("vary", axis.name), f"{key} is set under 'set' too; keep one of them"
            if any(_overlap(key, each) for each in from_command):
                yield ("vary", axis.name), f"{key} cannot be changed by --set: the space varies it"


def _plan_problems(file: _File, metrics: Sequence[str], axes: Sequence[Choice | Range]) -> Iterator[Problem]:
    if metrics[0] not in METRICS:
        yield ("metric",), f"{shown(metrics[0])} is not a metric.{nearest(metrics[0], METRICS)}"
    if len(metrics) > 1 and metrics[1] not in COSTS:
        yield ("metric",), f"{shown(metrics[1])} is not a cost.{nearest(metrics[1], COSTS)}"
    if len(metrics) > 1 and file.pruning is not None:
        yield ("pruning",), "a search with two metrics has none; write pruning: null"
    if file.sampler != "grid":
        if (file.budget.trials, file.budget.hours) == (None, None):
            yield ("budget",), "expected trials or hours"
        return
    if endless := [axis.name for axis in axes if isinstance(axis, Range) and axis.is_continuous]:
        yield from ((("vary", name), "a grid needs a step, or a list of choices") for name in endless)
        return
    count = math.prod(axis.count for axis in axes)
    if count > MAX_POINTS:
        yield ("vary",), f"the grid has {count:,} points; expected at most {MAX_POINTS:,}"
    if file.budget.trials is not None and file.budget.trials < count:
        yield ("budget", "trials"), f"{file.budget.trials}: the grid has {count:,} points; remove some, or this key"


def _corner_problems(space: Space) -> list[str]:
    """Returns a line for each problem in the configuration of a corner; of another file's line, with the corner."""
    lines: dict[str, str] = {}
    for corner in space.corners():
        try:
            config = space.config(corner)
        except ConfigError as error:
            text = str(error).splitlines()
            for line in text[1:] or [f"  {text[0]}"]:
                lines.setdefault(line, line if space.file.name in line else f"{line} (trial with {describe(corner)})")
            continue
        pruning = space.pruning
        if pruning and config.num_epochs < pruning.min_epochs:
            rungs = f"{pruning.rungs} rungs of factor {pruning.factor}"
            line = f"  pruning: num_epochs {config.num_epochs} is too short for {rungs}; expected at least {pruning.min_epochs}"
            lines[line] = line
    return list(lines.values())


def _lines(read: SourcedMapping, problems: Sequence[Problem]) -> list[str]:
    places = (f"{place}: " if (place := read.place(path)) else "" for path, _ in problems)
    return [
        f"  {place}{'.'.join(map(str, path))}: {message}"
        for place, (path, message) in zip(places, problems, strict=True)
    ]


def _error(path: Path, lines: Sequence[str]) -> ConfigError:
    return ConfigError("\n".join([f"{path} has {len(lines)} problem{'s' * (len(lines) > 1)}:", *lines]))
