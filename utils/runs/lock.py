"""Locks between processes: of a run that is being trained, of a piece of work that several may take."""

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import RunError

LOCK = ".training"
WAIT_SECONDS = 10  # longer than `is_held` takes, and than the workers of a killed training outlive it

logger = logging.getLogger(__name__)


def acquire(lock: FileLock, *, timeout: float = -1) -> bool:
    """Takes a lock, and returns whether it did within `timeout` seconds; -1: however long it takes.

    Raises:
        RunError: The file system has no locks.
    """
    try:
        lock.acquire(timeout)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise RunError(f"{lock.lock_file} cannot be locked: {error}; give another --output folder") from error
    return True


def try_lock(path: Path) -> FileLock | None:
    """Locks a file that processes share, and returns the lock, or None if another process has it.

    Raises:
        RunError: The file system has no locks.
    """
    lock = FileLock(path)
    return lock if acquire(lock, timeout=0) else None


def hold(folder: Path) -> FileLock | None:
    """Locks the run in `folder` until the lock is released or this process ends, however it ends.

    Returns:
        The lock, which the caller must keep; None, with a warning, if the file system has no locks.

    Raises:
        RunError: Another process is training this run.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise RunError(
            f"{folder} is being trained by another process: wait until it ends, or start a new run without --resume"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): the dashboard will show this run as killed", folder, error)
        return None
    return lock


def is_held(folder: Path) -> bool:
    """Returns whether a process on this machine is training the run in `folder`."""
    if not (folder / LOCK).exists():
        return False
    try:
        lock = try_lock(folder / LOCK)
    except RunError:  # the file system has no locks
        return False
    if lock is not None:
        lock.release()
    return lock is None
