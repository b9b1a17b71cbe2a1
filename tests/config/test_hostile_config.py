"""Random configurations: each is one clean error or a valid configuration, in time, and executes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile import damaged, examples, outcome
from utils.config import CONFIG_FILE, load_config
from utils.config.schema import Config as Schema
from utils.errors import ConfigError

VALUES = yaml.safe_load(CONFIG_FILE.read_text(encoding="utf-8"))
KEYS = st.sampled_from(list(Schema.model_fields))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | KEYS
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
TEXTS = [
    "1e-3", "-.inf", "9" * 50, "0x" + "f" * 5000, "9" * 5000, "2026-13-45", "=", "<<: *a", "*a", "&a [*a]", "!!binary gA==",
    "!!set {a}", "!!int x", "!!bool x", "!x y", '"\\0"', '"\\ud800"', "{a: " * 40 + "}" * 40, "[" * 300, "? [a]", "@", "<x>",
    "~nobody/data", "None", "x #y", "!!python/object/apply:os.system ['touch executed']", "lambda epoch: open('executed', 'w')",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.yml"}  # nothing was executed


def check(*, text: bytes | None = None, overrides: tuple[str, ...] = ()) -> None:
    """Loads a file and overrides; a valid configuration is read back from its own text as the same."""

    def load() -> None:
        if text is not None:
            Path("mine.yml").write_bytes(text)
        config = load_config("mine.yml" if text is not None else None, overrides=overrides)
        Path("mine.yml").write_text(config.as_yaml(), encoding="utf-8")
        assert load_config("mine.yml").plain() == config.plain()

    message = outcome(load, ConfigError)
    assert message is None or any(place in message for place in ("mine.yml", "config.yml:", "--set"))


@st.composite
def changed_values(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the configuration with values of wrong types and ranges, at any depth."""
    values = json.loads(json.dumps(VALUES))
    for _ in range(draw(st.integers(1, 4))):
        parent = values
        key = draw(st.sampled_from(list(parent)))
        while isinstance(parent[key], (dict, list)) and parent[key] and draw(st.booleans()):
            parent = parent[key]
            key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        parent[key] = draw(TREES)
    return values


@examples(40)
@given(damaged([CONFIG_FILE.read_bytes(), b"optimizer_params: {lr: 0.1, betas: [0.9, 0.99]}\n"]))
def test_damaged_files(text):
    check(text=text)


@examples(40)
@given(changed_values())
def test_wrong_types_and_ranges(values):
    check(text=yaml.safe_dump(values).encode())


@examples(40)
@given(
    st.lists(
        st.tuples(KEYS | st.text(max_size=9), st.sampled_from(TEXTS) | st.text(max_size=20)), min_size=1, max_size=3
    )
)
def test_odd_overrides(pairs):
    check(overrides=tuple("=".join(pair) for pair in pairs))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_odd_values_in_a_file(text):
    for line in (
        f"seed: {text}",
        f"output_path: {text}",
        f"lr_scheduler: LambdaLR\nlr_scheduler_params: {{lr_lambda: {text}}}",
    ):
        check(text=line.encode())
