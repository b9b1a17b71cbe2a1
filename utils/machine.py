"""Describes this machine, its cores and memory, and sets how processes use them."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

MAX_WORKERS = 8
# OpenMP's variables that decide how long an idle thread spins. Any of them in the environment is the user's choice.
SPIN_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# glibc's parameters of mallopt(3): when the memory at the end of the heap is returned, and how many blocks lie outside of it.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
PROJECT = Path(__file__).resolve().parents[1]  # the folder of the entry scripts


def set_thread_policy() -> None:
    """Makes OpenMP's idle threads sleep instead of spin, unless the user has chosen; call it before torch is imported.

    Spinning threads take the cores from other programs: beside a second training on two cores, a training becomes about
    ten times slower.
    """
    if not any(name in os.environ for name in SPIN_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation, unless the user has set one of its variables (`MALLOC_…`).

    By default it returns the memory of activations to the system after each training step, and takes it again page by page
    in the next one, which takes a fifth of the time of a step on a CPU. Without glibc this does nothing.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, -1)
            mallopt(M_MMAP_MAX, 0)


def release_freed_memory() -> None:
    """Returns freed memory to the system: before processes are forked, which would keep a copy of it."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def runtime() -> Literal["colab", "local"]:
    """Returns where this program runs, by the study's names."""
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules else "local"


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Returns the processor's name."""
    with suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def worker_count(configured: Literal["auto"] | int, *, processes: int = 1) -> int:
    """Returns the number of workers that load images, for each of the `processes` that train on this machine."""
    return max(1, min(available_cores() // processes, MAX_WORKERS)) if configured == "auto" else configured


def total_memory() -> int | None:
    """Returns this machine's memory in bytes, or None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
