"""Which of several training processes this is, known from the environment before Lightning starts.

torchrun and srun start all processes at once. Lightning's own launcher starts the others late: it runs the command again
when the first process has reached the training.
"""

import ctypes
import os
import signal
import sys
import time
from types import FrameType

from utils.errors import ConfigError

SAME_SIGNAL = 1.0  # seconds within which a second signal counts as the first one, which notebooks deliver twice
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # of torchrun, of srun, and two of Lightning's launcher


def is_first_process() -> bool:
    """Returns whether this process writes files and logs: it is the only one or has rank zero."""
    return not any(_read_variable(name) for name in RANKS)


def check_launch(*, rank: int, world_size: int) -> None:
    """Checks that the trainer's processes are those that the environment describes.

    Args:
        rank: The trainer's rank of this process.
        world_size: The trainer's number of processes.

    Raises:
        ConfigError: They are not, so that each process would train alone or wait for others forever.
    """
    if (rank == 0) == is_first_process() and _read_variable("WORLD_SIZE") <= world_size and rank < world_size:
        return
    names = [name for name in RANKS if _read_variable(name)] + ["WORLD_SIZE"] * (_read_variable("WORLD_SIZE") > 1)
    found = ", ".join(f"{name}={os.environ[name]}" for name in names)
    raise ConfigError(
        f"the environment has {found}, as in one of several processes, but devices and num_nodes make {world_size}: "
        f"if it is left over in this shell, run `unset {' '.join(names)}`, else set devices and num_nodes to match"
    )


def _read_variable(name: str) -> int:
    try:
        return int(os.environ.get(name) or 0)
    except ValueError:
        raise ConfigError(f"environment variable {name}={os.environ[name]}: expected a number; unset it") from None


def end_with_parent(number: signal.Signals | None = None) -> None:
    """Makes Linux send this process a signal, by default SIGKILL, as soon as its parent has ended, for whatever reason."""
    if sys.platform == "linux":  # Windows has no SIGKILL
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if number is None else number)


def ignore_signals(worker: int) -> None:
    """Initializes a DataLoader worker: a signal to all processes is for the training process, which ends its workers."""
    end_with_parent()  # else it would hold the run's lock for seconds after the training process was killed
    received: list[float] = []

    def ignore(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        # A later one ends this worker: Python sends it to the remaining workers at exit, and waits for them.
        if received[-1] - received[0] > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore)
