"""What makes a driver stop: a signal, or another driver that took its sweep over."""

import os
import signal
from types import FrameType


class Stop:
    """Set by SIGINT or SIGTERM (a second one ends the process at once), or when the lease is lost."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.taken_over = False
        self.listen()

    def lose(self) -> None:
        """Another driver has the sweep now."""
        self.taken_over = True

    def listen(self) -> None:
        """Takes the signals over; again after `ray.init`, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None or self.taken_over
