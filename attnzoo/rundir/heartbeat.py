"""A sign of life while a run trains, whatever it is busy with: a step, an evaluation, a download."""

from contextlib import AbstractContextManager, suppress

from attnzoo.rundir.background import call_periodically
from attnzoo.rundir.folder import RunFolder

INTERVAL_SECONDS = 5.0


def heartbeat_thread(run: RunFolder) -> AbstractContextManager[None]:
    """Touch the run's status file every few seconds; a disk that fails meanwhile is the run's own to notice."""

    def beat() -> None:
        with suppress(OSError):
            run.update_heartbeat()

    return call_periodically(beat, INTERVAL_SECONDS)
