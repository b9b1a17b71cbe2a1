"""Runs a command: its errors become one message and an exit code instead of a traceback."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from utils.errors import UserError
from utils.logs import without_secrets


def run_command(main: Callable[[Sequence[str] | None], Any]) -> int:
    """Calls `main` with the arguments of the command line and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII shows \u2026 instead of a traceback
    try:
        main(None)
    except UserError as error:
        print(without_secrets(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
