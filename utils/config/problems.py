"""Turns what pydantic, torch and torchvision find wrong into one error that lists every problem with its place."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from utils.config.schema import SECRET, Config, Normalization, TableParams
from utils.config.yaml_source import SET, Key, SourcedMapping, cut, shown
from utils.errors import ConfigError
from utils.nearest import nearest

Problem = tuple[Key, str]

MAX_PROBLEMS = 50  # in one error
MAX_REASON = 1000  # characters of a library's message
CONFIG_KEYS = (*Config.model_fields, "base")
# Keys that have a mapping of fixed keys; pydantic's names of alternatives are left out of the places of problems.
SECTIONS: dict[str, Iterable[str]] = {
    "normalization_params_rgb": Normalization.model_fields,
    "normalization_params_grayscale": Normalization.model_fields,
    "table_params": TableParams.model_fields,
}
# Types as YAML writes them, from pydantic's names.
KINDS = {
    "a valid list": "a list, such as [1, 2]",
    "a valid dictionary": "names with their values below, such as {name: value}",
    "an instance of Path": "a path",
}
# What constructors of torch and torchvision raise for a wrong value.
CONSTRUCTOR_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ConfigError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Problems:
    """Collects the problems that only torch finds, and reports them in one error too."""

    def __init__(self, config: Any) -> None:
        self.config = config  # of utils.config.loading
        self.found: list[Problem] = []

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Records an error raised in the block as a problem of `key`."""
        try:
            yield
        except CONSTRUCTOR_ERRORS as error:
            path = self.config.source.changed(key)
            value = getattr(self.config, key)
            for part in path[1:]:
                value = value[part]
            reason = str(error)[:MAX_REASON] or type(error).__name__
            self.found.append((path, f"invalid value {shown(value)}: {reason}"))

    def raise_any(self) -> None:
        """Raises a ConfigError of all problems, if there are any."""
        if self.found:
            raise ConfigError(report(self.config.source, self.found))


def report(source: SourcedMapping, problems: list[Problem]) -> str:
    """Returns one line for each problem, with its place."""
    lines = [f"The configuration has {len(problems)} problem{'s' * (len(problems) > 1)}:"]
    for path, message in problems[:MAX_PROBLEMS]:
        place = source.place(path)
        lead = f"{place} " if place == SET else f"{place}: " if place else ""
        lines.append(f"  {lead}{cut('.'.join(map(str, path)))}: {message}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"  and {len(problems) - MAX_PROBLEMS} more")
    return "\n".join(lines)


def schema_problems(
    error: ValidationError, *, sections: Mapping[str, Iterable[str]] = SECTIONS, top: Iterable[str] = CONFIG_KEYS
) -> list[Problem]:
    """Returns one problem for each value; the alternatives of a key (such as auto, or a number) share a message.

    Args:
        error: Of pydantic.
        sections: The keys below each key that has a mapping of fixed keys.
        top: The keys of the file.
    """
    details: dict[Key, list[Any]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_written_path(*detail["loc"], in_section=detail["loc"][0] in sections), []).append(detail)
    return [
        (path, _message(path, alternatives, top if len(path) == 1 else sections.get(path[0], ())))
        for path, alternatives in details.items()
    ]


def close_keys(key: str | int) -> list[str]:
    """Returns the key that an unknown `key` was probably meant to be, if there is one."""
    return difflib.get_close_matches(cut(str(key)).lower(), Config.model_fields, n=1)


def _written_path(key: str | int, *below: str | int, in_section: bool) -> Key:
    """Returns a location of pydantic without its names of alternatives."""
    names = [part for part in below if isinstance(part, str) and "[" not in part]
    kept = names[:1] if in_section else names if str(key).endswith("_augmentations") else []
    return (key, *(part for part in below if isinstance(part, int) or part in kept))


def _message(path: Key, alternatives: list[Any], allowed: Iterable[str]) -> str:
    if alternatives[0]["type"] == "extra_forbidden":
        return f"unknown key.{nearest(cut(str(path[-1])), allowed)}"
    if alternatives[0]["type"] == "missing":
        return "this key is missing"
    messages = [
        re.sub(r"^(Input should be|Value error,) | or instance of \w+$", "", each["msg"]) for each in alternatives
    ]
    expected = " or ".join(dict.fromkeys(KINDS.get(message, message) for message in messages))
    choices = re.findall("'([^']+)'", " ".join(each.get("ctx", {}).get("expected", "") for each in alternatives))
    value = alternatives[0]["input"]
    return f"{'<secret>' if path[0] == SECRET else shown(value)}; expected {expected}.{_hint(value, choices)}"


def _hint(value: Any, choices: list[str]) -> str:
    """Returns what was probably meant: a boolean without quotes, or one of the choices."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return f" Write {value.capitalize()} without quotes."
    text = cut(str(value)).lower()
    close = [choice for choice in choices if text in (choice.lower(), choice.partition("-")[0])]
    close += difflib.get_close_matches(text, choices, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
