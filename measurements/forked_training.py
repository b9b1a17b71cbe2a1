"""Trainings as forks of a process that has imported everything: one starts in a hundredth of the time of `python train.py`.

What is real: each is a process of its own that runs `train.py`'s command with its arguments, exit code, files, locks, worker
processes and tracker; a signal to it is a signal to a training. What is not: the seconds of importing libraries, in which
nothing of the project has begun. Works where there is os.fork, /proc and flock: Linux.
"""

import atexit
import importlib
import os
import signal
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
import tqdm

import train
from datamodules.demo import write_demo_data
from utils.cli import run_command
from utils.tracking.mlflow import open_store

POLL_SECONDS = 0.0005
IMPORTED = (
    "assembly", "datamodules.check.check", "matplotlib.backends.backend_agg", "matplotlib.figure", "training.error_hints",
    "utils.tracking.mlflow",
)  # fmt: skip


def preload(folder: Path) -> None:
    """Imports what a training imports, by using it where that is the only way; starts no thread.

    Args:
        folder: For what is made on the way.
    """
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # a thread; a lock that it holds in the moment of a fork stays locked in the child
    tqdm.tqdm.set_lock(threading.RLock())  # its own is one of all forks: who is killed with it in hand stops the others
    folder.mkdir(parents=True, exist_ok=True)
    open_store(folder)
    for module in IMPORTED:
        importlib.import_module(module)


def write_archive(folder: Path, *, training_photos: int, validation_photos: int, other_photos: int) -> None:
    """Writes drawn cars as car_ims.tgz and cars_annos.mat.

    Args:
        folder: Where to.
        training_photos, validation_photos: Of each of the models.
        other_photos: So many photos more, which no annotation speaks of: only the extraction takes longer by them.
    """
    drawn = folder.parent / "drawn"
    write_demo_data(drawn, training_photos=training_photos, validation_photos=validation_photos)
    photos = sorted(drawn.glob("car_ims/*.jpg"))
    folder.mkdir()
    (drawn / "cars_annos.mat").rename(folder / "cars_annos.mat")
    with tarfile.open(folder / "car_ims.tgz", "w:gz", compresslevel=1) as tar:
        for photo in photos:
            tar.add(photo, f"car_ims/{photo.name}")
        for number in range(other_photos):
            tar.add(photos[number % len(photos)], f"car_ims/other_{number:06d}.jpg")


class Training:
    """A training under way, the leader of a process group of its own.

    Args:
        arguments: Of `train.py`.
        log: File that takes all it says.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.started = time.monotonic()
        self.exit_code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become_training(arguments, log)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def has_ended(self) -> bool:
        """Looks whether it has, without waiting."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def wait(self, seconds: float) -> int:
        """Waits for its end and returns its exit code; kills it if it takes longer than `seconds`."""
        limit = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > limit:
                self.kill()
                raise TimeoutError(f"the training has not ended within {seconds:.0f} s")
            time.sleep(0.005)
        return self.exit_code

    def freeze(self) -> None:
        """Stops all of its processes where they are, to look at what they are doing."""
        os.killpg(self.pid, signal.SIGSTOP)
        while not self.has_ended() and _state(self.pid) != "T":
            time.sleep(0.0001)

    def kill(self, *, alone: bool = False) -> None:
        """Kills the group, or the training process alone, as the system does that runs out of memory."""
        if alone:
            os.kill(self.pid, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGCONT)  # for its workers, which must notice it themselves
        else:
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.exit_code = os.waitstatus_to_exitcode(status)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _become_training(arguments: Sequence[str], log: Path) -> None:
    """Runs the command in a fork, and ends the process as the interpreter would."""
    code = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(descriptor, stream.fileno())
        sys.argv = ["train.py", *arguments]
        code = run_command(train.main, outlives_terminal=True)
        atexit._run_exitfuncs()
    except BaseException:  # nothing may come back into the process that forked
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
