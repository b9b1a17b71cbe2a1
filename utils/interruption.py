"""Lets a training that gets a signal finish its step and write its checkpoint; a second signal ends it at once."""

import signal
import time
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what Colab and job schedulers send before they kill


class Interruption:
    """Notes the first signal. As a context manager it takes the place of the usual handlers for a while."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.since = 0.0

    def __enter__(self) -> Self:
        self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @property
    def seconds(self) -> float:
        """How long ago the signal came; 0 without one."""
        return 0.0 if self.signal_number is None else time.monotonic() - self.since

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number, self.since = number, time.monotonic()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
