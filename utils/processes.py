"""Which of several training processes this is, asked before Lightning has started: the environment tells.

torchrun and srun start all of them at once. Lightning's own launcher starts the others late, by running the command again
when the first one has come to the training.
"""

import ctypes
import os
import signal
import sys
import time
from types import FrameType

SAME_SIGNAL = 1.0  # seconds within which a second signal is the first one, delivered twice, as notebooks do
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # by torchrun, by srun, and two by Lightning's launcher


def is_first_process() -> bool:
    """Says whether this process writes and speaks: it is the only one, or rank zero."""
    return not any(int(os.environ.get(name) or 0) for name in RANKS)


def end_with_parent() -> None:
    """Lets Linux end this process as soon as the one that has started it is gone, whatever has ended that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ignore_signals(worker: int) -> None:
    """Begins a process that reads photos: what is sent to all is for the one that trains, which ends its workers in time."""
    end_with_parent()  # or else it would hold the run's lock for seconds after that one has been killed
    came: list[float] = []

    def ignore(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        # A later one ends this process: Python sends it to workers that are still there when it exits, and waits.
        if came[-1] - came[0] > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore)
