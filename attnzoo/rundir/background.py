"""Call a function periodically in a background thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def call_periodically(function: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `function` every `seconds` in a background thread until the block ends; the first time after `seconds`."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
