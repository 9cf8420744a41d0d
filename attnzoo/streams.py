"""Standard input, output and error of a program that may have been started without them, or whose reader may end."""

import logging
import os
import sys


def open_missing() -> None:
    """Open /dev/null in place of standard streams that are closed, as in `attnzoo list >&-`. Call it first.

    Else the next file that is opened has the number of the stream, and what C libraries print goes into that file.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, handle)
            if null != handle:
                os.close(null)
            os.set_inheritable(handle, True)
    for handle, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(handle, "w" if handle else "r", encoding="utf-8", closefd=False))


class EchoHandler(logging.StreamHandler):
    """Repeats the log on standard output until nobody reads it, which does not concern the training."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        """Fall silent if the stream cannot be written; any other error is reported as logging does."""
        if isinstance(sys.exc_info()[1], OSError):
            self.setLevel(logging.CRITICAL + 1)
        else:
            super().handleError(record)
