"""Runs a command: an error becomes one message and an exit code instead of a traceback."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from utils.errors import UserError
from utils.logs import without_secrets
from utils.machine import keep_freed_memory, set_thread_policy

READER_GONE = 141  # 128 + SIGPIPE, the exit code of `cat` or `grep` whose reader has gone


def run_command(main: Callable[[Sequence[str] | None], Any], *, outlives_terminal: bool = False) -> int:
    """Calls `main` with the arguments of the command line and returns the exit code.

    Args:
        main: The command.
        outlives_terminal: Whether the command continues after its terminal was closed or the reader of its output has
            gone, as a training must. Any other command then ends with exit code 141.
    """
    set_thread_policy()
    keep_freed_memory()
    if outlives_terminal and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    originals = sys.stdout, sys.stderr
    _fill_closed_descriptors()
    sys.stdout, sys.stderr = outputs = [_Output(stream, outlives_terminal=outlives_terminal) for stream in originals]
    code = 0
    try:
        try:
            main(None)
        except UserError as error:
            code = error.exit_code
            print(without_secrets(f"error: {error}"), file=sys.stderr)
        except KeyboardInterrupt:
            code = 130
            print("interrupted", file=sys.stderr)
        sys.stdout.flush()
    except _ReaderGone:
        code = code or READER_GONE
    finally:
        for output in outputs:
            output.detach_lost()
        sys.stdout, sys.stderr = originals
    return code


def set_options(overrides: Iterable[str]) -> list[str]:
    """Returns the arguments of a command line that make these overrides of the configuration."""
    return [word for override in overrides for word in ("--set", override)]


class _ReaderGone(BaseException):
    """Ends a command; no handler of a command's own errors may stop it."""


class _Output:
    """A standard stream whose reader may go away.

    Attributes:
        lost: Why some text could not be written; None while everything was.
    """

    def __init__(self, stream: TextIO | None, *, outlives_terminal: bool) -> None:
        self.lost = None if stream is not None else "it is closed"
        self.outlives_terminal = outlives_terminal
        self.stream = stream if stream is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows \u2026 instead of a traceback

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(self.stream.write, text)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self._attempt(self.stream.writelines, lines)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, operation: Callable[..., Any], *arguments: Any) -> None:
        try:
            operation(*arguments)
        except OSError as error:  # a closed pipe, a terminal that is gone, a full disk behind `> file`
            self.lost = self.lost or error.strerror or str(error)
            if self.outlives_terminal:
                return
            if isinstance(error, BrokenPipeError):
                raise _ReaderGone from error
            raise

    def detach_lost(self) -> None:
        """Lets Python flush what is left without an error when it exits."""
        with suppress(OSError, ValueError):
            self.stream.flush()
            return
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def _fill_closed_descriptors() -> None:
    """Opens stdin, stdout and stderr on nothing where they are closed: else the next file opened would take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
