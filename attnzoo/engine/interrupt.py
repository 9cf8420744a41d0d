"""Graceful shutdown: the first signal finishes the current step, a second Ctrl-C aborts."""

import signal
import time
from types import FrameType

# Ctrl-C, the end of a SLURM job, its warning signal, a closed terminal, and others that users send with `scancel -s`.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
DUPLICATE_SIGINT_SECONDS = 1.0  # torchrun forwards a Ctrl-C that the terminal has sent to its workers already


def stop_signals() -> list[signal.Signals]:
    """Those of `STOP_SIGNALS` that this process is to follow: not SIGHUP if it is ignored, as under nohup."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return [signum for signum in STOP_SIGNALS if signum not in ignored]


class TrainingInterrupted(Exception):
    """Training stopped on request, with its state saved."""


class GracefulStop:
    """Sets `requested` on the first of `stop_signals()`. A context manager.

    Unblocks these signals: a parent may start the process with them blocked until the handlers are installed.

    `signum` is the signal received. SIGTERM, which ends the job, takes precedence over SIGUSR2, which comes
    before a time limit or a preemption.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signum = 0
        self._requested_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "GracefulStop":
        signals = stop_signals()
        for signum in signals:
            self._previous[signum] = signal.signal(signum, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
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
