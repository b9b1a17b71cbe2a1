"""Numbers that the benchmarks read off the command line; a wrong one is one line and exit code 2."""

import argparse
from collections.abc import Callable

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
