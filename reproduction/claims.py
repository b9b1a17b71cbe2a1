"""Shares a list of jobs among processes and machines through a folder, so that none is done twice.

A claim is a file, `<key>.claim-<number>`, made with O_EXCL: of all who try, one succeeds, on network file systems too (NFS
since version 3). Whoever holds it sets its time anew every few seconds. A claim whose holder gave it back, or is gone, is
never deleted; the next holder makes the next number. So two who both find a claim abandoned cannot both get it, which
deleting and making it anew would allow. On the same machine a holder is gone when its process is; of another machine, when
the claim's time is old. A holder that had only been suspended finds the higher number, and stops.
"""

import json
import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from utils.errors import RunError
from utils.files import write_text

BEAT = 20  # seconds between two signs of life
SILENCE = 300  # seconds without one after which a holder counts as gone; more than a network drive keeps old times

PROCESSES = (("pid", "birth"), ("worker", "worker_birth"))  # in a claim: who has it, who does the job

Outcome = Literal["finished", "failed", "interrupted"]


class Claim:
    """A job that this process has to itself, until `release` or its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = {"host": _host(), "pid": os.getpid(), "birth": _birth(os.getpid()), "outcome": None}
        self.beaten = time.monotonic()

    def started(self, pid: int) -> None:
        """Notes the process that does the job: the claim holds as long as it lives, even where this one is killed."""
        self._write(self.values | {"worker": pid, "worker_birth": _birth(pid)})

    def beat(self) -> bool:
        """Gives a sign of life where it is due, and says whether the claim still holds."""
        if time.monotonic() - self.beaten >= BEAT:
            self.beaten = time.monotonic()
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return False
            except OSError:  # the drive was away for a moment; if it stays away, the training itself will say so
                return True
            return not _next(self.path).exists()
        return True

    def release(self, outcome: Outcome) -> None:
        """Gives the job back."""
        self._write(self.values | {"outcome": outcome})

    def _write(self, values: dict[str, Any]) -> None:
        self.values = values
        write_text(self.path, json.dumps(values))


def take(folder: Path, key: object) -> Claim | None:
    """Claims a job; returns None where somebody else has it.

    Args:
        folder: Where the claims are; made if need be.
        key: Names the job.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        last = _last(folder, key)
        if last is not None and _is_held(last):
            return None
        claim = Claim(folder / f"{key}.claim-1" if last is None else _next(last))
        with claim.path.open("x", encoding="utf-8") as file:
            json.dump(claim.values, file)
    except FileExistsError:
        return None
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from error
    return claim


def holder(folder: Path, key: object) -> str | None:
    """Returns who has a job, None where nobody has."""
    last = _last(folder, key)
    if last is None or not _is_held(last):
        return None
    values = _read(last)
    return f"{values['host'].split()[0]}, process {values['pid']}" if values else "somebody"


def failed_since(folder: Path, key: object, moment: float) -> str | None:
    """Returns the host on which a job failed after `moment`, a time of `now`; None if it did not."""
    last = _last(folder, key)
    values = _read(last) if last else {}
    if values.get("outcome") != "failed" or last.stat().st_mtime < moment:
        return None
    return values["host"].split()[0]


def now(folder: Path) -> float:
    """Returns the time by the clock that dates the files in `folder`, which may be that of another machine."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.fstat(file.fileno()).st_mtime


def _is_held(path: Path) -> bool:
    values = _read(path)
    if values.get("outcome") is not None:
        return False
    if values.get("host") == _host() and values["birth"] is not None:
        return any(_birth(values[who]) == values[birth] for who, birth in PROCESSES if who in values)
    return now(path.parent) - path.stat().st_mtime < SILENCE


def _read(path: Path) -> dict[str, Any]:
    """Returns who has the claim; nothing for one that is being written at this moment."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _last(folder: Path, key: object) -> Path | None:
    claims = [path for path in folder.glob(f"{key}.claim-*") if re.fullmatch(r"\.claim-\d+", path.suffix)]
    return max(claims, key=_number, default=None)


def _next(path: Path) -> Path:
    return path.with_suffix(f".claim-{_number(path) + 1}")


def _number(path: Path) -> int:
    return int(path.suffix.rpartition("-")[2])


def _host() -> str:
    """Returns the name of this machine, which others may share, with what tells where a process id means a process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _birth(pid: int) -> str | None:
    """Returns when a process started, which tells it from a later one with its number; None if it is gone or not Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
