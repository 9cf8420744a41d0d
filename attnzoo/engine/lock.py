"""One process at a time works on a run folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnzoo.errors import UserError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises UserError naming the owner if another process does.

    The lock is the kernel's: it ends with the process that holds it, however that ends.
    """
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder}: already being trained by {file.read().strip()}") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
