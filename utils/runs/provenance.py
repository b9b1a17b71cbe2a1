"""Describes what a run was made with: versions and commit."""

import importlib.metadata
import platform
import subprocess

from utils.machine import PROJECT

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "pillow", "pydantic")


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
