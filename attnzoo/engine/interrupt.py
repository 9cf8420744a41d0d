"""Stopping on request: the first signal lets the step finish, a second Ctrl-C stops at once."""

import signal
import time
from types import FrameType

GRACEFUL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Ctrl-C, a batch system's end of time, its warning
ECHO_SECONDS = 1.0  # torchrun passes the terminal's Ctrl-C on to processes that have already had it


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved."""


class StopRequest:
    """Installed while a run trains: `requested` becomes true with the first signal. A context manager.

    Signals that were blocked come in now: whoever starts a process can hold them back until then.

    `number` is the signal that asked; SIGTERM, which asks to stop for good, prevails over SIGUSR2, which comes before
    a time limit or a preemption.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number = 0
        self._since = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        for number in GRACEFUL:
            self._previous[number] = signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GRACEFUL)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = max(self.number, number)
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            raise KeyboardInterrupt
