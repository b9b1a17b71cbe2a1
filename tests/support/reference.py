"""The record of the published study, which is not part of the project: tests that need it are skipped without it."""

import ast

import pytest

from tests.support.small_runs import table
from utils.config import CONFIG_FILE

REFERENCE = CONFIG_FILE.parents[1] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"the published record is not part of the project; expected in {REFERENCE}"
)


def reference_rows(name: str) -> list[dict[str, str]]:
    """Returns the rows of a file of the record, none without it."""
    return table(REFERENCE / name) if REFERENCE.is_dir() else []


def logged_value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text or None
