"""What this machine is: its cores, versions, commit, and whether it is Colab."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Literal

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "pillow", "pydantic")
MOST_WORKERS = 8


def runtime() -> Literal["colab", "local"]:
    """Returns where this program runs, in the study's words."""
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules else "local"


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def worker_count(configured: Literal["auto"] | int) -> int:
    """Returns the number of processes that read photos."""
    return min(available_cores(), MOST_WORKERS) if configured == "auto" else configured


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Returns the git commit of this project, with "+changes" where files differ from it; None outside git."""
    project = Path(__file__).resolve().parents[1]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=project, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def total_memory() -> int | None:
    """Returns the bytes of memory that this machine has, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
