"""Lets a training that gets a signal finish its step and write its checkpoint; a second signal ends it at once."""

import os
import signal
import time
from types import FrameType
from typing import Self

from utils.errors import Interrupted
from utils.processes import SAME_SIGNAL

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what Colab and job schedulers send before they kill


class SignalHandler:
    """Notes the first signal. As a context manager it takes the place of the usual handlers for a while.

    Until training begins, where there is no step to finish, the signal ends at once what is being done.
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
        """Begins what has steps to finish: from now on a signal is noted, and this alone is told of it."""
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
        """How long ago the signal came; 0 without one."""
        return time.monotonic() - self.received_at if self.received else 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.signal_number, self.received_at = number, time.monotonic()
            if not self.installed:
                name = signal.Signals(number).name
                raise Interrupted(f"{name} ended it before the first step", signal_number=number)
        elif self.seconds_since > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
