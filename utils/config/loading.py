"""Loads configuration files on top of their bases, applies overrides, and checks the result."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from utils.config.checks import check_values
from utils.config.problems import Problem, close_keys, report, schema_problems
from utils.config.schema import BRANCHABLE_KEYS, LOCAL_KEYS, RENAMED_KEYS, RESUMABLE_KEYS, SECRET
from utils.config.schema import Config as _Schema
from utils.config.yaml_source import SET, SourcedMapping, cut, read_yaml_file, read_yaml_value, shown, yaml_text
from utils.errors import ConfigError
from utils.machine import PROJECT

DEFAULTS = {name: field.default for name, field in _Schema.model_fields.items() if not field.is_required()}
CONFIG_FILE = PROJECT / "config.yml"


class Config(_Schema):
    """A complete, valid configuration that knows the place of each value."""

    _source: SourcedMapping = PrivateAttr()

    @property
    def source(self) -> SourcedMapping:
        """The values as they were written, and their places."""
        return self._source

    def as_yaml(self) -> str:
        """Returns the configuration as YAML text, without the secret."""
        return yaml_text(self.plain())

    def plain(self) -> dict[str, Any]:
        """Returns the configuration as plain values, without the secret."""
        return self.model_dump(mode="json", exclude={SECRET})


def load_config(path: Path | str | None = None, *, overrides: Sequence[str] = ()) -> Config:
    """Loads a configuration file on top of its bases, and applies `overrides`.

    Args:
        path: A YAML file; each of its keys replaces the whole key of its base. The key `base` names the base, relative to
            the file; without `base` it is `config.yml`, with `base: null` there is none. None: `config.yml`.
        overrides: Texts such as "optimizer_params.lr=0.01"; the value is YAML.

    Raises:
        ConfigError: Lists every problem with its place, its value and what was expected.
    """
    source = SourcedMapping()
    for layer in reversed(_layers(CONFIG_FILE if path is None else Path(path))):
        for key in ("experiment_id", "description"):  # those of its base are not its own
            source.values.pop(key, None)
        source.update(layer)
    return parse_config(_overridden(source, overrides))


def load_run_config(folder: Path, *, overrides: Sequence[str] = ()) -> Config:
    """Loads the resolved configuration of the run in `folder`, to resume it.

    Args:
        folder: A run's folder; its parent becomes the output_path.
        overrides: As in `load_config`, but only of `RESUMABLE_KEYS`.

    Raises:
        ConfigError: As `load_config`, or a key may not change in a resumed run.
    """
    for override in overrides:
        key, name = override.partition("=")[0].strip(), overridden_key(override)
        if name in _Schema.model_fields and name not in RESUMABLE_KEYS:  # else it is misspelled
            raise ConfigError(
                f"--set {cut(key)}: a resumed run keeps its {cut(key)}; it can change {', '.join(RESUMABLE_KEYS)}. "
                "For other settings start a new run, without --resume"
            )
    source = _overridden(read_config_file(folder / "config.yml"), overrides)
    source.set(("output_path",), str(folder.parent), "--resume")  # the folder may have been moved
    return parse_config(source)


def overridden_key(override: str) -> str:
    """Returns the key of the configuration that a text such as "table_params.label=model" changes, by its present name."""
    name = override.partition("=")[0].partition(".")[0].strip()
    return RENAMED_KEYS.get(name, name)


def local_overrides(overrides: Iterable[str]) -> list[str]:
    """Returns the overrides that a program gives again to a run that it resumes: where and on what it runs."""
    return [override for override in overrides if overridden_key(override) in {*RESUMABLE_KEYS} & {*LOCAL_KEYS}]


def load_branch_config(
    folder: Path, path: Path | str | None = None, *, overrides: Sequence[str] = ()
) -> tuple[Config, list[str]]:
    """Loads the configuration of a run that is branched from the run in `folder`, and names the keys that shape it anew.

    Args:
        folder: The trunk's folder; its parent is the output_path, unless that is changed.
        path: A YAML file; each of its keys replaces the whole key of the trunk's configuration.
        overrides: As in `load_config`.

    Raises:
        ConfigError: As `load_config`, or a key may not change in a branch.
    """
    source = read_config_file(folder / "config.yml")
    trunk = parse_config(source)
    own = {"experiment_id": None, "description": None, "tags": [], "keep_checkpoints": None}  # the trunk's
    for key, value in own.items():
        source.set((key,), value, "--branch")
    source.set(("output_path",), str(folder.parent), "--branch")
    if path is not None:
        layer = read_config_file(Path(path))
        if "base" in layer.values:
            place = layer.place(("base",))
            raise ConfigError(f"{place}: base: has no effect with --branch: the run's configuration is the base")
        source.update(layer)
    config = parse_config(_overridden(source, overrides))
    changed = [key for key in _Schema.model_fields if getattr(config, key) != getattr(trunk, key)]
    fixed = [key for key in changed if key not in {*BRANCHABLE_KEYS, *LOCAL_KEYS}]
    if fixed:
        allowed = ", ".join(key for key in BRANCHABLE_KEYS if key not in LOCAL_KEYS)
        problems = [((key,), f"a branch keeps the {key} of its run, {shown(getattr(trunk, key))}") for key in fixed]
        raise ConfigError(f"{report(source, problems)}\nA branch can change {allowed}")
    return config, [key for key in changed if key not in LOCAL_KEYS]


def read_config_file(path: Path) -> SourcedMapping:
    """Reads the keys of one configuration file, those with a former name under their present one.

    Raises:
        ConfigError: The file cannot be read, or sets a key under both names.
    """
    source = read_yaml_file(path)
    _rename_keys(source)
    return source


def parse_config(source: SourcedMapping) -> Config:
    """Checks the values of `source` and returns them as a `Config`.

    Raises:
        ConfigError: As `load_config`.
    """
    _rename_keys(source)  # of a checkpoint's configuration
    config, problems = None, list[Problem]()
    try:
        config = Config.model_validate(source.values)
        config._source = source
    except ValidationError as error:
        problems = schema_problems(error)
    # An unknown key may be a misspelled one, whose present value is not the one that was meant.
    wrong = {path[0] for path, _ in problems}
    wrong |= {close for key in wrong - _Schema.model_fields.keys() for close in close_keys(key)}
    values = DEFAULTS | source.values
    problems += check_values({key: value for key, value in values.items() if key not in wrong})
    if config is None or problems:
        raise ConfigError(report(source, problems))
    return config


def _layers(path: Path | None) -> list[SourcedMapping]:
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
            path = CONFIG_FILE if CONFIG_FILE.resolve() not in files else None
            named = len(files)
    return layers


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


def _rename_keys(source: SourcedMapping) -> None:
    for former, name in RENAMED_KEYS.items():
        if former in source.values:
            if name in source.values:
                places = f"{source.place((former,))} and {source.place((name,))}"
                raise ConfigError(f"{places}: {former} is the former name of {name}; remove one of them")
            source.rename(former, name)
