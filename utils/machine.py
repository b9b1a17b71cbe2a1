"""Describes this machine and this copy of the project: cores, memory, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "pillow", "pydantic")
MAX_WORKERS = 8
# OpenMP's variables that decide how long an idle thread spins. Any of them in the environment is the user's choice.
SPIN_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
PROJECT = Path(__file__).resolve().parents[1]  # the folder of the entry scripts


def set_thread_policy() -> None:
    """Makes OpenMP's idle threads sleep instead of spin, unless the user has chosen; call it before torch is imported.

    Spinning threads take the cores from other programs: beside a second training on two cores, a training becomes about
    ten times slower.
    """
    if not any(name in os.environ for name in SPIN_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


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


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Returns the project's git commit, with "+changes" appended if files differ from it; None outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=PROJECT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def total_memory() -> int | None:
    """Returns this machine's memory in bytes, or None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
