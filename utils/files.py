"""Writes files so that what is there is always whole."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import RunError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and puts the file in its place when all of it is on the disk.

    Raises:
        RunError: The disk is full, or the folder cannot be written to; `path` is as it was.
    """
    # The name of the machine too: on two that share a folder, such as two containers, processes may have the same number.
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; make room, or set another output_path"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
