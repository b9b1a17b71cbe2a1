"""Reads a YAML file into plain values and remembers the line of each, for error messages that point at it.

Only plain data comes out: mappings, lists, texts, numbers, booleans and null; tags that would build objects are refused.
Unlike plain YAML: the text `None` means null (so the published configurations wrote it), and a key given twice is an error.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError

# A configuration has some hundred values; what is far larger is a mistake or an attack (aliases that multiply).
LARGEST_FILE = 1_000_000  # bytes
MOST_VALUES = 10_000
DEEPEST = 20

Key = tuple[str | int, ...]


class SourcedMapping:
    """The values of a mapping and where each was written.

    Attributes:
        values: The plain mapping.
        places: From the path of a value, such as ("optimizer_params", "lr"), to "config.yml:42".
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[Key, str] = {}

    def place(self, path: Key) -> str:
        """Returns the place of the value at `path`, or of the nearest value that holds it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def replace(self, other: "SourcedMapping") -> None:
        """Takes over each top-level key of `other`, whole."""
        for key in other.values:
            self.forget((key,))
        self.values.update(other.values)
        self.places.update(other.places)

    def forget(self, path: Key) -> None:
        """Drops the places of the value at `path` and of all below it."""
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}

    def set(self, path: Key, value: Any, place: str) -> None:
        """Sets one value, making the mappings on the way to it where there are none."""
        parent = self.values
        for depth, key in enumerate(path[:-1], start=1):
            if parent.get(key) is None:
                parent[key] = {}
            if not isinstance(parent[key], dict):
                raise ConfigError(f"{place}: {'.'.join(map(str, path[:depth]))} holds no keys of its own")
            parent[key] = dict(parent[key])  # a copy: a YAML alias may share it with another key
            parent = parent[key]
        parent[path[-1]] = value
        self.forget(path)
        self.places[path] = place


def read_yaml_file(path: Path) -> SourcedMapping:
    """Reads the YAML mapping in the file `path`.

    Raises:
        ConfigError: The file cannot be read, is not UTF-8 or YAML, or does not hold a mapping.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path} is larger than {LARGEST_FILE:,} bytes: that is no configuration")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    reader = _Reader(_shown(path))
    value = reader.read(text)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} must hold keys and values, such as 'batch_size: 64', but holds {type(value).__name__}"
        )
    source = SourcedMapping()
    source.values, source.places = value, reader.places
    return source


def _shown(path: Path) -> str:
    """Returns `path` from the current folder, where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def read_yaml_value(text: str, name: str) -> Any:
    """Reads one YAML value, such as the right side of `--set key=value`; `name` stands for a file name in errors."""
    return _Reader(name).read(text)


def number_hint(value: Any) -> str:
    """Returns what to write for a number that YAML 1.1 takes for text, such as 1e-3; an empty text for anything else."""
    if not isinstance(value, str) or not re.fullmatch(
        r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value.strip(), re.IGNORECASE
    ):
        return ""
    number = float(value)
    mantissa, exponent, power = repr(int(number) if number.is_integer() else number).partition("e")
    number = mantissa + (".0" if exponent and "." not in mantissa else "") + exponent + power
    return f"YAML takes {value} for text: write {number}."


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.count = 0

    def read(self, text: str) -> Any:
        loader = None
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            return None if node is None else self._value(loader, node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise ConfigError(f"{self.name}{line}: not valid YAML: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.name}: not valid YAML: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{self.name}: nested too deeply") from error
        except (ValueError, OverflowError) as error:  # a date with a 13th month, an integer of 10,000 digits
            raise ConfigError(f"{self.name}: a value cannot be read: {error}") from error
        finally:
            if loader is not None:
                loader.dispose()

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, path: Key) -> Any:
        self.count += 1
        place = f"{self.name}:{node.start_mark.line + 1}"
        if self.count > MOST_VALUES or len(path) > DEEPEST:
            raise ConfigError(
                f"{place}: more than {MOST_VALUES:,} values or {DEEPEST} levels: that is no configuration"
            )
        self.places.setdefault(path, place)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                raise ConfigError(f"{place}: the tag {node.tag} is not allowed")
            return [self._value(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, path, place)
        value = loader.construct_object(node)
        return None if value == "None" else value

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: Key, place: str) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            raise ConfigError(f"{place}: the tag {node.tag} is not allowed")
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{self.name}:{key_node.start_mark.line + 1}"
            key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ConfigError(f"{line}: a key must be a name, not {key_node.value!r}")
            if key in values:
                raise ConfigError(f"{line}: the key '{key}' is given twice, first at {self.places[(*path, key)]}")
            self.places[(*path, key)] = line
            values[key] = self._value(loader, value_node, (*path, key))
        return values
