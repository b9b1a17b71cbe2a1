"""Lets a training that gets a signal finish its step and write its checkpoint; a second signal ends it at once."""

import os
import signal
import time
from types import FrameType
from typing import Self

SAME_SIGNAL = 1.0  # seconds within which a second signal is the first one, delivered twice, as notebooks do
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what Colab and job schedulers send before they kill


def ignore_signals(worker: int) -> None:
    """Begins a process that reads photos: what is sent to all is for the one that trains, which ends its workers in time."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interruption:
    """Notes the first signal. As a context manager it takes the place of the usual handlers for a while."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.since = 0.0

    def __enter__(self) -> Self:
        self.previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.take_signals()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def take_signals(self) -> None:
        """Makes this the only one that is told of signals, until one has come."""
        if not self.noted:
            for number in SIGNALS:
                signal.signal(number, self._note)

    @property
    def noted(self) -> bool:
        return self.signal_number is not None

    @property
    def seconds(self) -> float:
        """How long ago the signal came; 0 without one."""
        return time.monotonic() - self.since if self.noted else 0.0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.noted:
            self.signal_number, self.since = number, time.monotonic()
        elif self.seconds > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
