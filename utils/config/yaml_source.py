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
LONGEST_NUMBER = 100  # characters; YAML computes some notations of numbers in quadratic time
LARGEST_INTEGER = 2**64
LONGEST_SHOWN = 200  # characters of a value in a message

SET = "--set"  # the place of what the command line changes
YAML_TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = {YAML_TAG + name for name in ("str", "int", "float", "bool", "null")}

Key = tuple[str | int, ...]


def shown(value: Any) -> str:
    """Returns `value` as Python writes it, cut where it is too long for a message."""
    return cut(repr(value))


def cut(text: str) -> str:
    """Returns `text`, cut where it is too long for a message."""
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " …"


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

    def changed(self, key: str) -> Key:
        """Returns the one value of `key` that --set has changed, or else the whole of it."""
        paths = [path for path, place in self.places.items() if path[0:1] == (key,) and place == SET]
        return max(paths, key=len) if paths and len({path[:2] for path in paths if len(path) > 1}) == 1 else (key,)

    def replace(self, other: "SourcedMapping") -> None:
        """Takes over each top-level key of `other`, whole."""
        self.places = {path: place for path, place in self.places.items() if not path or path[0] not in other.values}
        self.values.update(other.values)
        self.places.update(other.places)

    def rename(self, former: str, name: str) -> None:
        """Renames a top-level key."""
        self.values = {name if key == former else key: value for key, value in self.values.items()}
        self.places = {
            (name, *path[1:]) if path[:1] == (former,) else path: place for path, place in self.places.items()
        }

    def forget(self, path: Key) -> None:
        """Drops the places of the value at `path` and of all below it."""
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}

    def set(self, path: Key, value: Any, place: str) -> None:
        """Sets one value, making the mappings on the way to it where there are none."""
        if len(path) > DEEPEST:
            raise ConfigError(f"{place}: more than {DEEPEST} levels: that is no configuration")
        parent = self.values
        for depth, key in enumerate(path[:-1], start=1):
            if parent.get(key) is None:
                parent[key] = {}
                self.places[path[:depth]] = place
            if not isinstance(parent[key], dict):
                raise ConfigError(f"{place}: {cut('.'.join(map(str, path[:depth])))} holds no keys of its own")
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


def _without_secrets(message: str, text: str) -> str:
    """Returns `message` without what stands in the YAML `text` behind a key that is, or was to be, a token's."""
    behind = re.findall(r"token\w{0,20}[\"' ]{0,20}:(.{0,2000})", text, re.IGNORECASE)
    for secret in {word for value in behind for word in re.findall(r"[\w+/=.-]{8,}", value)}:
        message = message.replace(secret, "<secret>")
    return message


class _Loader(yaml.SafeLoader):
    """Builds no larger and no deeper tree of nodes than a configuration has, whatever the text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = 0
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > 2 * MOST_VALUES:  # a key is a node too
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES:,} values", problem_mark=self.get_mark())
        if self.depth > DEEPEST:
            raise RecursionError
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.count = 0

    def read(self, text: str) -> Any:
        try:
            return self._read(text)
        except ConfigError as error:
            raise ConfigError(_without_secrets(str(error), f"{self.name}: {text}")) from None

    def _read(self, text: str) -> Any:
        loader = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            return None if node is None else self._value(loader, node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            problem = cut(str(error.problem or error.context))
            raise ConfigError(f"{self.name}{line}: not valid YAML: {problem}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.name}: not valid YAML: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{self.name}: nested too deeply, more than {DEEPEST} levels") from error
        except (ValueError, LookupError, OverflowError) as error:  # such as a number that is none
            raise ConfigError(f"{self.name}: a value cannot be read: {cut(str(error))}") from error
        finally:
            if loader is not None:
                loader.dispose()

    def _value(self, loader: _Loader, node: yaml.Node, path: Key) -> Any:
        self.count += 1
        place = f"{self.name}:{node.start_mark.line + 1}"
        if self.count > MOST_VALUES or len(path) > DEEPEST:
            raise ConfigError(
                f"{place}: more than {MOST_VALUES:,} values or {DEEPEST} levels: that is no configuration"
            )
        self.places.setdefault(path, place)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, place, YAML_TAG + "seq")
            return [self._value(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, place, YAML_TAG + "map")
            return self._mapping(loader, node, path)
        value = self._scalar(loader, node, place)
        return None if value == "None" else value

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{self.name}:{key_node.start_mark.line + 1}"
            key = self._scalar(loader, key_node, line) if isinstance(key_node, yaml.ScalarNode) else key_node.id
            if not isinstance(key, str) or not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{line}: a key must be a name, not {shown(key)}")
            if key in values:
                first = self.places[(*path, key)]
                raise ConfigError(f"{line}: the key {shown(key)} is given twice, first at {first}")
            self.places[(*path, key)] = line
            values[key] = self._value(loader, value_node, (*path, key))
        return values

    def _scalar(self, loader: _Loader, node: yaml.ScalarNode, place: str) -> Any:
        if node.tag == YAML_TAG + "timestamp":
            raise ConfigError(f"{place}: YAML takes {shown(node.value)} for a date; write it in quotes")
        self._check_tag(node, place, *PLAIN_TAGS)
        if node.tag != YAML_TAG + "str" and len(node.value) > LONGEST_NUMBER:
            raise ConfigError(f"{place}: a value cannot be read: a number of {len(node.value):,} characters")
        value = loader.construct_object(node)
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ConfigError(f"{place}: a value cannot be read: {shown(node.value)} is too large")
        # Neither a file name nor UTF-8 can have these; only an escape in double quotes makes them.
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ConfigError(f"{place}: the text {shown(value)} has characters that no text can have")
        return value

    def _check_tag(self, node: yaml.Node, place: str, *allowed: str) -> None:
        if node.tag not in allowed:
            raise ConfigError(f"{place}: the tag {cut(node.tag)} is not allowed")
