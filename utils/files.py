"""Writes files so that what is there is always whole, and clears away what killed processes have begun."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import RunError

PARTIAL = ".*.partial*"  # with what SQLite writes beside a file of that name
FORGOTTEN_SECONDS = 24 * 3600  # after which what another machine has begun is taken for given up


@contextmanager
def replacing(path: Path, *, key: str = "output_path") -> Iterator[Path]:
    """Gives a path beside `path` to write to, and puts the file in its place when all of it is on the disk.

    Args:
        path: The file.
        key: Of the configuration, that decides on which disk it lies.

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
            f"{path} cannot be written: {error.strerror or error}; make room, or set another {key}"
        ) from error
    finally:
        with suppress(OSError):  # on a disk that has become read-only, the first error is the one to be told
            partial.unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents where they are missing, and returns it.

    Raises:
        RunError: The folder cannot be created, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    return path


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partial(folder: Path, *, alone: bool = False) -> None:
    """Removes what killed processes have begun to write into `folder`, and leaves what others are writing.

    Args:
        folder: Where `replacing` has written.
        alone: Whether no other process can be writing there.
    """
    for partial in folder.glob(PARTIAL):
        with suppress(OSError):  # another process may have been faster, and a folder that is only read is left as it is
            if alone or _is_abandoned(partial):
                partial.unlink()


def _is_abandoned(partial: Path) -> bool:
    owner, _, _ = partial.name.rpartition(".partial")
    process = owner.rpartition(".")[2]
    if owner.endswith(f".{platform.node()}.{process}") and process.isdigit() and sys.platform != "win32":
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another user's
            return False
        return False
    return abs(time.time() - partial.stat().st_mtime) > FORGOTTEN_SECONDS
