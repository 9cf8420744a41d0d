"""Doing something again and again beside the work in hand."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def call_periodically(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `action` every so many seconds, in a thread of its own, until the block ends; not at its beginning."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
