"""Numbers and paths that the benchmarks read off the command line; a wrong one is one line and exit code 2."""

import argparse
from collections.abc import Callable
from pathlib import Path

LONGEST = 24 * 3600.0  # seconds


def at_least(least: int) -> Callable[[str], int]:
    """Returns what reads a whole number from `least` on off the command line."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} on")
        return number

    return read


def some_seconds(text: str) -> float:
    """Reads a time that passes, and ends, off the command line."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0, at most {LONGEST:.0f}")
    return seconds


def report(text: str) -> Path:
    """Reads the path of a report, before anything has been measured for it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a file in a folder that is there")
    return path


def existing_folder(text: str) -> Path:
    """Reads the path of a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a folder that is there")
    return Path(text)


def new_folder(text: str) -> Path:
    """Reads the path of a folder, which is made where it is not there."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a folder ({error.strerror})") from error
    return Path(text)
