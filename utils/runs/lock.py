"""Tells a run that is being trained from one whose process is gone, whatever ended it."""

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import RunError

LOCK = ".training"
WAIT_SECONDS = 10  # longer than a look at the lock lasts, and than the workers of a killed training outlive it

logger = logging.getLogger(__name__)


def hold(folder: Path) -> FileLock | None:
    """Marks the run in `folder` as being trained until the lock is released or this process ends.

    Returns:
        The lock, to be kept; None, with a warning, where there cannot be one.

    Raises:
        RunError: Another process trains it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise RunError(
            f"{folder} is being trained by another process; wait for its end, or start a run of its own without --resume"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): the dashboard will show this run as killed", folder, error)
    else:
        return lock
    return None


def is_held(folder: Path) -> bool:
    """Says whether a process on this machine trains the run in `folder`."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False
