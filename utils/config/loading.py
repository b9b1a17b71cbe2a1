"""Loads `config.yml`, what a file or `--set` changes of it, and reports all that is wrong with it at once.

Nothing here imports torch: a typo is answered in well under a second.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import PrivateAttr, ValidationError

from utils.config.checks import MOST_PROBLEMS, check_values
from utils.config.schema import RENAMED_KEYS, RESUMABLE_KEYS
from utils.config.schema import Config as _Schema
from utils.config.yaml_source import SET, Key, SourcedMapping, cut, number_hint, read_yaml_file, read_yaml_value, shown
from utils.errors import ConfigError
from utils.nearest import nearest

__all__ = ["Config", "ConfigError", "Problems", "load_config", "load_run_config", "parse_config"]

LONGEST_PROBLEM = 1000  # characters of what a library says of a value
LONGEST_CHOICE = 40
# What pydantic says of types, in the words of YAML.
KINDS = {
    "a valid list": "a list, such as [1, 2]",
    "a valid dictionary": "names with their values below, such as {name: value}",
    "an instance of Path": "a path",
}
SECRET = "neptune_api_token"  # a key whose value is in no message and in no file
CONFIG_FILE = Path(__file__).resolve().parents[2] / "config.yml"


class Config(_Schema):
    """A whole, valid configuration that knows where each of its values was written."""

    _source: SourcedMapping = PrivateAttr()

    def as_yaml(self) -> str:
        """Returns the configuration as YAML text, without the secret."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def plain(self) -> dict[str, Any]:
        """Returns the configuration as plain values, without the secret."""
        return self.model_dump(mode="json", exclude={SECRET})


def load_config(
    path: Path | str | None = None, *, overrides: Sequence[str] = (), with_config_yml: bool = True
) -> Config:
    """Loads a configuration file on top of its bases, and applies `overrides`.

    Args:
        path: A YAML file; each of its keys replaces the whole key of its base. The key `base` names the base, relative to
            the file; without `base` it is `config.yml`, with `base: null` there is none. None: `config.yml`.
        overrides: Texts such as "optimizer_params.lr=0.01"; the value is YAML.
        with_config_yml: False: leave out `config.yml`; what no other file sets has its default.

    Raises:
        ConfigError: Lists every problem with its place, its value and what was expected.
    """
    path = CONFIG_FILE if path is None else Path(path)
    source = SourcedMapping()
    for layer in reversed(_layers(path, with_config_yml)):
        for key in ("experiment_id", "description"):  # a file that changes an experiment is another one
            source.values.pop(key, None)
        source.replace(layer)
    return parse_config(_overridden(source, overrides))


def read_config_file(path: Path) -> SourcedMapping:
    """Reads the keys of one configuration file, those with a former name under their present one.

    Raises:
        ConfigError: The file cannot be read, or sets a key under both names.
    """
    source = read_yaml_file(path)
    _rename_keys(source)
    return source


def _rename_keys(source: SourcedMapping) -> None:
    for former, name in RENAMED_KEYS.items():
        if former in source.values:
            if name in source.values:
                places = f"{source.place((former,))} and {source.place((name,))}"
                raise ConfigError(f"{places}: {former} is the former name of {name}; remove one of them")
            source.rename(former, name)


def _layers(path: Path | None, with_config_yml: bool) -> list[SourcedMapping]:
    """Returns the file `path` and its bases, each without the key `base`."""
    layers: list[SourcedMapping] = []
    files: list[Path] = []
    named = 0  # position of the first file that is reached from `path`, or from config.yml, by the key `base` alone
    place = ""
    while path is not None and path.resolve() not in files[:named]:
        if path.resolve() in files:
            chain = " → ".join(file.name for file in [*files[files.index(path.resolve()) :], path])
            raise ConfigError(f"{place}: base: the bases form a cycle: {chain}")
        try:
            layer = read_config_file(path)
        except ConfigError as error:
            raise ConfigError(f"{place}: base: {error}" if place else str(error)) from error
        layers.append(layer)
        files.append(path.resolve())
        place = layer.places.get(("base",), "")
        if place:
            base = layer.values.pop("base")
            if base is not None and (not isinstance(base, str) or not base.strip()):
                raise ConfigError(f"{place}: base: {shown(base)}; expected the path of a configuration file, or null")
            path = None if base is None else path.resolve().parent / Path(base).expanduser()
        else:
            path = CONFIG_FILE if with_config_yml and CONFIG_FILE.resolve() not in files else None
            named = len(files)
    return layers


def load_run_config(folder: Path, *, overrides: Sequence[str] = ()) -> Config:
    """Loads the resolved configuration of the run in `folder`, to go on with it.

    Args:
        folder: A run's folder; where it lies is its output_path.
        overrides: As in `load_config`, but only keys that leave the training itself as it was.

    Raises:
        ConfigError: As `load_config`, or a key may not be changed within a run.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if RENAMED_KEYS.get(key, key) not in RESUMABLE_KEYS:
            raise ConfigError(
                f"--set {cut(key)}: a run that goes on keeps its {cut(key)}; only {', '.join(RESUMABLE_KEYS)} can be changed. "
                "For another training start a new run, without --resume"
            )
    source = _overridden(read_config_file(folder / "config.yml"), overrides)
    source.set(("output_path",), str(folder.parent), "--resume")  # the folder may have been moved
    return parse_config(source)


def _overridden(source: SourcedMapping, overrides: Sequence[str]) -> SourcedMapping:
    used: dict[str, str] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {cut(path)}: write --set key=value, such as --set optimizer_params.lr=0.01")
        key, *rest = path.strip().split(".")
        if key == "base":
            raise ConfigError("--set base: only a file can name its base; use --config FILE")
        name = RENAMED_KEYS.get(key, key)
        if used.setdefault(name, key) != key:
            raise ConfigError(f"--set {used[name]} and --set {key} are names of the same key; give one of them")
        source.set((name, *rest), read_yaml_value(text, f"--set {cut(path)}"), SET)
    return source


def parse_config(source: SourcedMapping) -> Config:
    """Checks the values of `source` and returns them as a `Config`.

    Raises:
        ConfigError: As `load_config`.
    """
    _rename_keys(source)  # of a checkpoint's configuration
    problems: list[tuple[Key, str]] = []
    config, wrong = None, set()
    try:
        config = Config.model_validate(source.values)
        config._source = source
    except ValidationError as error:
        problems += _schema_problems(error)
        wrong = {detail["loc"][0] for detail in error.errors(include_url=False)}
    problems += check_values(source.values, wrong)
    if problems:
        raise ConfigError(_report(source, problems))
    return config


class Problems:
    """Gathers what only torch can find wrong with a configuration, so that it too comes in one error."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.found: list[tuple[Key, str]] = []

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Takes an error raised within for a problem of `key`."""
        try:
            yield
        # Whatever a constructor of torch or torchvision raises for a wrong value is the answer to that value.
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            ConfigError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error)[:LONGEST_PROBLEM] or type(error).__name__
            path = self.config._source.changed(key)
            value = getattr(self.config, key)
            for part in path[1:]:
                value = value[part]
            self.found.append((path, f"{shown(value)} is not possible: {reason}"))

    def raise_any(self) -> None:
        """Raises the ConfigError of all that was found."""
        if self.found:
            raise ConfigError(_report(self.config._source, self.found))


def _report(source: SourcedMapping, problems: list[tuple[Key, str]]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    if len(problems) >= MOST_PROBLEMS:
        count = f"{MOST_PROBLEMS} or more problems"
    lines = [f"The configuration has {count}:"]
    for path, message in problems[:MOST_PROBLEMS]:
        place = source.place(path)
        name = cut(".".join(map(str, path)))
        lead = f"{place} " if place == SET else f"{place}: " if place else ""
        lines.append(f"  {lead}{name}: {message}")
    return "\n".join(lines)


def _schema_problems(error: ValidationError) -> list[tuple[Key, str]]:
    """Returns one problem for each key; the alternatives of a key (such as auto, or a number) become one message."""
    expected: dict[Key, list[str]] = {}
    values: dict[Key, Any] = {}
    choices: dict[Key, list[str]] = {}
    problems: dict[Key, str] = {}
    for detail in error.errors(include_url=False)[:MOST_PROBLEMS]:
        # Behind the key and the positions in it stands pydantic's name of the alternative, which no person wrote.
        path = _written_path(detail["loc"])
        kind = detail["type"]
        if kind == "extra_forbidden":
            allowed = [*Config.model_fields, "base"] if len(path) == 1 else ["mean", "std"]
            problems[path] = f"unknown key.{nearest(str(path[-1]), allowed)}"
        elif kind == "missing":
            problems[path] = "this key is missing"
        else:
            values[path] = detail["input"]
            message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            expected.setdefault(path, []).append(KINDS.get(message, message))
            if kind == "literal_error":
                choices.setdefault(path, []).extend(re.findall("'([^']+)'", detail["ctx"]["expected"]))
    for path, messages in expected.items():
        alternatives = list(dict.fromkeys(messages))
        value = "<secret>" if path[0] == SECRET else shown(values[path])
        hint = _hint(values[path]) or _closest(values[path], choices.get(path, []))
        problems[path] = f"{value}; expected {' or '.join(alternatives)}.{hint}"
    return list(problems.items())


def _closest(value: Any, choices: list[str]) -> str:
    """Returns which of a key's few values was meant, if that can be told."""
    text = str(value)[:LONGEST_CHOICE].lower()
    close = [choice for choice in choices if text in (choice.lower(), choice.partition("-")[0])]
    close += difflib.get_close_matches(text, choices, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _written_path(location: tuple[str | int, ...]) -> Key:
    path: list[str | int] = [location[0]]
    for part in location[1:]:
        if (
            isinstance(part, int)
            or part in ("mean", "std")
            or location[0] in ("image_augmentations", "tensor_augmentations")
        ) or (len(location) == 2 and location[0].startswith("normalization_params")):
            path.append(part)
    return (path[0], *(part for part in path[1:] if not (isinstance(part, str) and ("[" in part or part == "dict"))))


def _hint(value: Any) -> str:
    """Returns what to write instead, for a number or a boolean that YAML took for a text."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return f" Write {value.capitalize()} without quotes."
    return f" {number_hint(value)}".rstrip()
