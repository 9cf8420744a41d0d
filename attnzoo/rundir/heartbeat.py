"""Heartbeat of a run, independent of what its main thread is doing."""

from contextlib import AbstractContextManager, suppress

from attnzoo.rundir.background import call_periodically
from attnzoo.rundir.folder import RunFolder

INTERVAL_SECONDS = 5.0


def heartbeat_thread(run: RunFolder) -> AbstractContextManager[None]:
    """Update the run's heartbeat every few seconds. I/O errors are ignored here: the main thread reports them."""

    def beat() -> None:
        with suppress(OSError):
            run.update_heartbeat()

    return call_periodically(beat, INTERVAL_SECONDS)
