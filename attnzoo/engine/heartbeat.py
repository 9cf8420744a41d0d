"""A sign of life while a run trains, whatever it is busy with: a step, an evaluation, a download."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attnzoo.rundir import RunDir

SECONDS = 5.0


@contextmanager
def beating(run: RunDir) -> Iterator[None]:
    """Touch the run's status file every few seconds; a disk that fails meanwhile is the run's own to notice."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(SECONDS):
            with suppress(OSError):
                run.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
