"""Stopping on request: the first signal lets the step finish, a second Ctrl-C stops at once."""

import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Ctrl-C, a batch system's end of time, its warning
DUPLICATE_SIGINT_SECONDS = 1.0  # torchrun passes the terminal's Ctrl-C on to processes that have already had it


class TrainingInterrupted(Exception):
    """The run was asked to stop, and its state is saved."""


class GracefulStop:
    """Installed while a run trains: `requested` becomes true with the first signal. A context manager.

    Signals that were blocked come in now: whoever starts a process can hold them back until then.

    `signum` is the signal that asked; SIGTERM, which asks to stop for good, prevails over SIGUSR2, which comes before
    a time limit or a preemption.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signum = 0
        self._requested_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "GracefulStop":
        for signum in STOP_SIGNALS:
            self._previous[signum] = signal.signal(signum, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum = max(self.signum, signum)
        if not self.requested:
            self.requested, self._requested_at = True, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._requested_at > DUPLICATE_SIGINT_SECONDS:
            raise KeyboardInterrupt
