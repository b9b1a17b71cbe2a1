"""Which of several training processes this is, asked before Lightning has started: the environment tells.

torchrun and srun start all of them at once. Lightning's own launcher starts the others late, by running the command again
when the first one has come to the training.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # by torchrun, by srun, and two by Lightning's launcher


def is_first_process() -> bool:
    """Says whether this process writes and speaks: it is the only one, or rank zero."""
    return not any(int(os.environ.get(name) or 0) for name in RANKS)


def end_with_parent() -> None:
    """Lets Linux end this process as soon as the one that has started it is gone, whatever has ended that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
