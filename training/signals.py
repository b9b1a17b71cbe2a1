"""After a signal a training finishes its step and writes a checkpoint; a second signal ends it at once."""

import os
import signal
import time
from types import FrameType
from typing import Self

from utils.errors import Interrupted
from utils.processes import SAME_SIGNAL

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what Colab and job schedulers send before they kill


class SignalHandler:
    """Remembers the first signal. As a context manager it replaces the handlers of the process.

    Before `install` there is no step to finish: the signal raises `Interrupted` at once.
    """

    def __init__(self) -> None:
        self.installed = False
        self.signal_number: int | None = None
        self.received_at = 0.0

    def __enter__(self) -> Self:
        self.previous = {number: signal.getsignal(number) for number in SIGNALS}
        self._set_handlers()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Handles signals alone from now on, and only remembers them: a training has started, with steps to finish."""
        self.installed = True
        self._set_handlers()

    def _set_handlers(self) -> None:
        if not self.received:
            for number in SIGNALS:
                signal.signal(number, self._handle)

    @property
    def received(self) -> bool:
        return self.signal_number is not None

    @property
    def seconds_since(self) -> float:
        """Seconds since the signal; 0 without one."""
        return time.monotonic() - self.received_at if self.received else 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.signal_number, self.received_at = number, time.monotonic()
            if not self.installed:
                name = signal.Signals(number).name
                raise Interrupted(f"{name} ended the run before the first step", signal_number=number)
        elif self.seconds_since > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
