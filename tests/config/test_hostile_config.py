"""Hostile configurations: each is a clean error or a valid configuration; none is a traceback, a hang or executed."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile import damaged, examples, outcome
from utils.config import CONFIG_FILE, Config, load_config
from utils.config.schema import Config as Schema
from utils.errors import ConfigError

CANARY = Path("executed")  # in a folder of its own, which each test makes the current one
TEXT = CONFIG_FILE.read_bytes()
VALUES = yaml.safe_load(TEXT)
KEYS = list(Schema.model_fields)

CODE = [
    f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"!!python/object/apply:subprocess.check_output [[touch, {CANARY}]]",
    f"!!python/object/new:os.system ['touch {CANARY}']",
    f'!!python/object/apply:builtins.eval [\'open("{CANARY}", "w")\']',
    "!!python/name:os.system ''",
    "!!python/module:os ''",
    f"\"__import__('os').system('touch {CANARY}')\"",
    f"\"lambda epoch: __import__('os').system('touch {CANARY}')\"",
    f"\"lambda epoch: open('{CANARY}', 'w')\"",
    f"\"{{{{ open('{CANARY}', 'w') }}}}\"",
    f'"$(touch {CANARY})"',
    f'"; touch {CANARY}"',
    f'"timm/hf-hub:`touch {CANARY}`"',
]
ODD_SCALARS = [
    "null", "None", "~", "True", "'True'", "yes", "''", "' '", "-1", "0", "1", "2", "1.5", "-0.0", "1e-3", "1.0e-3",
    ".nan", ".inf", "-.inf", "9" * 50, "-" + "9" * 5000, "0x" + "f" * 5000, "0o7", "0777", "0b1" + "0" * 300, "1:30",
    "1" + ":59" * 2000, "1_000", "1.0e400", "2026-11-24", "2026-13-45", "2026-11-24T10:00:00Z", "=", "<<", "*a",
    "&a 1", "!!binary gA==", "!!set {a}", "!!str 5", "!!int x", "!!float x", "!!bool x", "!!null x", "!!omap [a: 1]",
    "!x y", "! 1", "!<tag:yaml.org,2002:int> 7", "|\n text", ">-\n text", "'Citroën'", '"\\0"', '"\\ud800"',
    '"\\x07"', '"a\\nb"', "[]", "{}", "[[]]", "[{}]", "{a: {b: {}}}", "? a", "- a", "@", "%", "`", "}", "]",
    "~nobody/data", "/dev/null", "/", "../..", "a" * 3000, "[" + "1," * 300 + "]", "[" * 40 + "]" * 40,
    "{a: " * 40 + "}" * 40, "<placeholder>", "auto", "ghost", "timm/x", "AdamW", "RandomAffine", "227", "[227, 227]",
    "[0, 0]", "{lr: 0.1}", "{mean: [0.5], std: [0.5]}", "{RandomAffine: {degrees: 5}}", "[mlflow]", "16-mixed", *CODE,
]  # fmt: skip
MULTIPLYING = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
)
HOSTILE_FILES = [
    b"", b"\xff\xfe", b"\xef\xbb\xbfseed: 1\n", "seed: 1\n".encode("utf-16"), b"\x00" * 100, b"seed: \x00\n",
    b"[" * 100_000, b"{" * 100_000, b"- " * 100_000, b"? " * 50_000, b"a: " * 1000, b"&a " * 1000,
    b"[" + b"1," * 490_000 + b"]", b"#" * 999_999, b"\n" * 999_999, b"a" * 999_999, b"a: " + b"b" * 999_000,
    b'"' + b"\\x41" * 240_000 + b'"', b"%TAG ! x\n" * 50_000, b"---\n" * 200_000, b"x: 1" + b":59" * 300_000,
    b"x: 0x" + b"f" * 900_000, b"x" * 2_000_000, b"'" + b"a\n" * 400_000, b"a: |\n" + b" b\n" * 200_000,
    b"a: &a [*a]", b"a: &a {a: *a}", b"".join(b"seed%d: 1\n" % number for number in range(9_000)),
    b"optimizer_params: {" + b"".join(b"lr%d: 1, " % number for number in range(9_000)) + b"}",
    b"image_augmentations:\n" + b"".join(b" RandomAffin%d: {}\n" % number for number in range(9_000)),
    b"tags: [" + b"5, " * 9_000 + b"]",
    MULTIPLYING,
]  # fmt: skip


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert os.listdir(tmp_path) in ([], ["mine.yml"])  # noqa: PTH208


def load(text: bytes) -> str | None:
    """Loads the text as a file; its error names the file."""
    Path("mine.yml").write_bytes(text)
    message = outcome(lambda: load_config("mine.yml"), ConfigError)
    assert (
        message is None or "mine.yml" in message or "config.yml:" in message
    )  # what it leaves as it is may not fit it
    assert not CANARY.exists()
    return message


def override(*changes: str) -> None:
    message = outcome(lambda: assert_whole(load_config(overrides=changes)), ConfigError)
    assert message is None or "--set" in message or "config.yml:" in message
    assert not CANARY.exists()


def assert_whole(config: Config) -> None:
    """A valid configuration can be written down and is read back as the same."""
    Path("mine.yml").write_text(config.as_yaml(), encoding="utf-8")
    assert load_config("mine.yml").plain() == config.plain()


@st.composite
def names(draw: st.DrawFn) -> str:
    """Draws a key, most often one of the configuration's, whole or misspelt."""
    key = draw(st.sampled_from(KEYS))
    where = draw(st.integers(0, len(key)))
    letter = draw(st.sampled_from(["", "x", "_", " ", "é", "\u202e", ":", '"', "#"]))
    kind = draw(st.sampled_from(["whole", "whole", "whole", "without", "with", "odd", "upper"]))
    return {
        "whole": key,
        "without": key[:where] + key[where + 1 :],
        "with": key[:where] + letter + key[where:],
        "odd": draw(
            st.sampled_from(["''", "1", "null", "? [a]", "<<", "[a]", "{a: b}", "x" * 2000, "*a", "2026-11-24"])
        ),
        "upper": key.upper(),
    }[kind]


def scalars() -> st.SearchStrategy[str]:
    return st.sampled_from(ODD_SCALARS) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)


def in_flow_style(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    mapping = st.lists(st.tuples(NAMES, inner).map(": ".join), max_size=4).map(", ".join)
    return st.lists(inner, max_size=4).map(", ".join).map("[{}]".format) | mapping.map("{{{}}}".format)


NAMES = names()
HOSTILE_VALUES = st.recursive(st.sampled_from(ODD_SCALARS) | st.text(max_size=20), in_flow_style, max_leaves=6)
HOSTILE_TEXTS = st.lists(st.tuples(NAMES, HOSTILE_VALUES).map(": ".join), min_size=1, max_size=6).map("\n".join)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(KEYS)
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(".".join)
OVERRIDES = st.lists(st.tuples(PATHS, HOSTILE_VALUES).map("=".join) | st.text(max_size=30), min_size=1, max_size=3)


@st.composite
def changed_values(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the configuration with values that are well-formed YAML, but of wrong types and ranges, at any depth."""
    values = yaml.safe_load(TEXT)
    for _ in range(draw(st.integers(1, 4))):
        parent = values
        key = draw(st.sampled_from(list(parent)))
        while isinstance(parent[key], (dict, list)) and parent[key] and draw(st.booleans()):
            parent = parent[key]
            key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        parent[key] = draw(TREES)
    return values


def check_bytes(count: int) -> None:
    @examples(count)
    @given(damaged([TEXT, b"seed: 1\n", b"optimizer_params: {lr: 0.1, betas: [0.9, 0.99]}\n"]))
    def check(text: bytes) -> None:
        load(text)

    check()


def check_lines(count: int) -> None:
    @examples(count)
    @given(HOSTILE_TEXTS)
    def check(text: str) -> None:
        load(text.encode("utf-8", "surrogatepass"))

    check()


def check_values(count: int) -> None:
    @examples(count)
    @given(changed_values())
    def check(values: dict[str, Any]) -> None:
        load(yaml.safe_dump(values).encode())

    check()


def check_overrides(count: int) -> None:
    @examples(count)
    @given(OVERRIDES)
    def check(changes: list[str]) -> None:
        override(*changes)

    check()


CHECKS = {check_bytes: 0.3, check_lines: 0.3, check_values: 0.2, check_overrides: 0.2}


@pytest.mark.parametrize("check", CHECKS)
def test_hundreds_of_hostile_configurations(check):
    check(int(500 * CHECKS[check]))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_ten_thousand_hostile_configurations(check):
    check(int(10_000 * CHECKS[check]))


@pytest.mark.parametrize("text", HOSTILE_FILES, ids=range(len(HOSTILE_FILES)))
def test_files_made_to_be_slow_or_huge(text):
    load(text)


@pytest.mark.parametrize("number", range(len(ODD_SCALARS)))
def test_each_odd_value_as_an_expression_and_under_a_key_of_each_kind_in_turn(number):
    kinds = (
        "seed",
        "tags",
        "output_path",
        "image_size",
        "lr_scheduler_params",
        "optimizer",
        "loss_params",
        "x",
        "dropout",
    )
    load(f"{kinds[number % len(kinds)]}: {ODD_SCALARS[number]}\n".encode())
    load(f"lr_scheduler: LambdaLR\nlr_scheduler_params: {{lr_lambda: {ODD_SCALARS[number]}}}\n".encode())


def test_overrides_that_are_deep_or_have_odd_names():
    override("? [a]=[]")
    override(".".join("a" * 5000) + "=1")
    override("image_augmentations" + ".a" * 25 + "=1")
