"""Writes files and folders: a file is complete or absent, and one error explains what cannot be written; digests of files."""

import csv
import hashlib
import io
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, RunError

PARTIAL = ".*.partial*"  # also matches the journal that SQLite writes beside a file
ABANDONED_SECONDS = 24 * 3600  # age at which another machine's partial file counts as abandoned


@contextmanager
def replacing(path: Path, *, key: str = "output_path") -> Iterator[Path]:
    """Yields a temporary path beside `path`, and moves the file to `path` once its content is on the disk.

    Args:
        path: The file.
        key: The configuration key that decides on which disk the file lies.

    Raises:
        RunError: The disk is full or the folder is not writable; `path` is unchanged. An error that names another
            file, such as an image that is read within the block, is passed on.
    """
    # With the machine's name: on two machines that share a folder, processes may have the same number.
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("r+b") as file:  # Windows flushes only what is open to be written
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error.filename, (str, os.PathLike)) and not _concerns(error.filename, partial):
            raise
        raise not_writable(path, error, key) from error
    finally:
        with suppress(OSError):  # on a disk that has become read-only, the first error is the one to report
            partial.unlink(missing_ok=True)


def _concerns(name: str | os.PathLike, partial: Path) -> bool:
    return Path(name) == partial.parent or Path(name).name.startswith(partial.name)


def not_writable(path: Path, error: OSError, key: str) -> RunError:
    """Returns the error that names the file or folder `path` and the configuration key that decides on its disk."""
    return RunError(f"{path} cannot be written: {error.strerror or error}; make room, or set another {key}")


def sync_folder(folder: Path) -> None:
    """Flushes the entries of `folder` to the disk, so that a rename in it survives a power cut."""
    with suppress(OSError):  # Windows and some network file systems cannot do it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` completely or not at all; raises RunError as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Writes `rows` as CSV: only `columns`, else the keys of the first row; missing values stay empty, floats are exact."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(*rows[:1]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, *, key: str = "output_path") -> Path:
    """Creates `folder` and its parents where they are missing, and returns it; raises RunError, which names `key`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{key}: {folder} is a file; expected a folder") from error
    except OSError as error:
        raise not_writable(folder, error, key) from error
    return folder


def make_timestamped_folder(parent: Path, name: str) -> Path:
    """Creates `<parent>/<name>_<timestamp>`, numbered from 2 where it exists, and returns it; or raises RunError."""
    stem, number = timestamped(name), 1
    make_folder(parent)
    while True:
        folder = parent / (stem if number == 1 else f"{stem}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # created in the same second
            number += 1
        except OSError as error:
            raise not_writable(parent, error, "output_path") from error
        else:
            return folder


def timestamped(name: str) -> str:
    """Returns `<name>_<timestamp>` with the local time to the second."""
    return f"{name}_{datetime.now():%Y%m%d%H%M%S}"


def remove_partial(folder: Path, *, alone: bool = False) -> None:
    """Removes the partial files of killed processes from `folder`.

    Args:
        folder: A folder that `replacing` writes to.
        alone: Whether no other process can be writing there; else files of running processes are kept.
    """
    for partial in folder.glob(PARTIAL):
        with suppress(OSError):  # another process may have been faster, or the folder is read-only
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
        except OSError:  # the process of another user
            return False
        return False
    return abs(time.time() - partial.stat().st_mtime) > ABANDONED_SECONDS
