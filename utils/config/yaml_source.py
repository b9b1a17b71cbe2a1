"""Reads YAML into plain values and records the file and line of each, for error messages.

Unlike PyYAML: numbers such as 1e-3 are numbers (as in YAML 1.2), dates are text, the text `None` is null (as in the published
configurations), and a duplicate key is an error.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from utils.errors import ConfigError

MAX_FILE_SIZE = 1_000_000  # bytes
MAX_VALUES = 10_000  # aliases multiply
MAX_DEPTH = 20
MAX_INTEGER = 2**64
MAX_SHOWN = 200  # characters of a value in a message

SET = "--set"  # the place of a value of the command line

Key = tuple[str | int, ...]


def shown(value: Any) -> str:
    """Returns `value` as Python writes it, shortened for a message."""
    return cut(repr(value))


def cut(text: str) -> str:
    """Returns `text`, shortened for a message."""
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " …"


class SourcedMapping:
    """A mapping and the place of each of its values.

    Attributes:
        values: The plain mapping.
        places: From the path of a value, such as ("optimizer_params", "lr"), to its place, such as "config.yml:42".
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[Key, str] = {}

    def place(self, path: Key) -> str:
        """Returns the place of the value at `path`, or else of the nearest value around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def changed(self, key: str) -> Key:
        """Returns the path of the only value of `key` that --set changed, or else (key,)."""
        paths = [path for path, place in self.places.items() if path[:1] == (key,) and place == SET]
        return max(paths, key=len) if len({path[:2] for path in paths if len(path) > 1}) == 1 else (key,)

    def update(self, other: "SourcedMapping") -> None:
        """Replaces each top-level key that `other` has."""
        self.places = {path: place for path, place in self.places.items() if path and path[0] not in other.values}
        self.values |= other.values
        self.places |= other.places

    def rename(self, former: str, name: str) -> None:
        """Renames a top-level key."""
        self.values[name] = self.values.pop(former)
        self.places = {
            (name, *path[1:]) if path[:1] == (former,) else path: place for path, place in self.places.items()
        }

    def set(self, path: Key, value: Any, place: str) -> None:
        """Sets the value at `path`, and creates the mappings on the way to it."""
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{place} {cut('.'.join(map(str, path)))}: more than {MAX_DEPTH} levels")
        parent = self.values
        for depth, key in enumerate(path[:-1], start=1):
            below = parent.get(key)
            if below is not None and not isinstance(below, dict):
                raise ConfigError(f"{place} {cut('.'.join(map(str, path[:depth])))}: this value has no keys")
            parent[key] = dict(below or {})  # a copy: a YAML alias may share it with another key
            self.places.setdefault(path[:depth], place)
            parent = parent[key]
        parent[path[-1]] = value
        self.places = {known: at for known, at in self.places.items() if known[: len(path)] != path} | {path: place}


def read_yaml_file(path: Path) -> SourcedMapping:
    """Reads the YAML mapping in the file `path`.

    Raises:
        ConfigError: The file cannot be read, is not UTF-8 or YAML, or does not hold a mapping.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        close = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.yml")], n=1)
        hint = f". Did you mean {path.with_name(close[0])}?" if close else ""
        raise ConfigError(f"{path} cannot be read: {error.strerror}{hint}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_FILE_SIZE:,} bytes; not a configuration file")
    relative = os.path.relpath(path)
    source = SourcedMapping()
    value, _ = _read(text, str(path) if relative.startswith("..") else relative, source.places)
    if not isinstance(value, dict | None):
        raise ConfigError(f"{path}: expected keys and values, such as 'batch_size: 64', not {type(value).__name__}")
    source.values = value or {}
    return source


def read_yaml_value(text: str, name: str) -> Any:
    """Reads one YAML value, such as the right side of `--set key=value`; `name` stands for a file name in errors.

    Unlike in a file, ` #` begins no comment: plain text is taken whole.
    """
    value, end = _read(text, name, {})
    rest = text[end:].strip()
    if not rest:
        return value
    if isinstance(value, dict | list) or text.lstrip()[:1] in ("'", '"'):
        raise ConfigError(f"{name}: {shown(rest)} after the value; remove it, or put the whole value in quotes")
    return text.strip()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would take for a number."""


EXPONENT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")  # and first characters
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", *EXPONENT)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", *EXPONENT)


def yaml_text(values: Mapping[str, Any], **settings: Any) -> str:
    """Returns values as a YAML text that is read back as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **settings)


def _read(text: str, name: str, places: dict[Key, str]) -> tuple[Any, int]:
    """Returns the value of a YAML text and the position of its end; adds the place of each value to `places`."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None, 0) if node is None else (_build(loader, node, (), name, places), node.end_mark.index)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = text.splitlines()[mark.line : mark.line + 1] if mark else []
        # A message of PyYAML may quote what stands there.
        problem = (
            ""
            if "token" in "".join([name, *line]).lower()
            else f": {cut(getattr(error, 'problem', None) or str(error))}"
        )
        raise ConfigError(f"{name}{f':{mark.line + 1}' if mark else ''}: not valid YAML{problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested more than {MAX_DEPTH} levels; not a configuration file") from error
    finally:
        if loader is not None:
            loader.dispose()


def _build(loader: _Loader, node: yaml.Node, path: Key, name: str, places: dict[Key, str]) -> Any:
    """Returns the plain value of `node`; its places are recorded on the way."""
    place = f"{name}:{node.start_mark.line + 1}"
    if len(path) > MAX_DEPTH:
        raise RecursionError
    if len(places) > MAX_VALUES:
        raise ConfigError(f"{place}: more than {MAX_VALUES:,} values; not a configuration file")
    places.setdefault(path, place)
    if isinstance(node, yaml.CollectionNode) and not node.tag.endswith((":seq", ":map")):
        raise ConfigError(f"{place}: a tag cannot be used here")
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*path, index), name, places) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = f"{name}:{key_node.start_mark.line + 1}"
            key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else key_node.id
            if not isinstance(key, str) or not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{place}: expected a name as key, not {shown(key)}")
            if key in mapping:
                raise ConfigError(f"{place}: duplicate key {shown(key)}, first at {places[(*path, key)]}")
            places[(*path, key)] = place
            mapping[key] = _build(loader, value_node, (*path, key), name, places)
        return mapping
    try:
        value = loader.construct_object(node)
        if isinstance(value, str):  # JSON writes some characters as pairs of escapes; half a pair is no character
            value = value.encode("utf-16", "surrogatepass").decode("utf-16")
            if "\0" in value:
                raise ValueError
    except (ValueError, KeyError) as error:  # KeyError: !!bool of another word
        raise ConfigError(f"{place}: this value cannot be read") from error
    if not isinstance(value, str | int | float | None) or (isinstance(value, int) and abs(value) > MAX_INTEGER):
        raise ConfigError(f"{place}: expected text, a number up to {MAX_INTEGER:.0e}, a boolean or null")
    return None if value == "None" else value
