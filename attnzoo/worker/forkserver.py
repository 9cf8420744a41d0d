"""Forks workers from one process that has imported them: `python -m attnzoo.worker.forkserver FD`.

Importing torch and the models takes longer than training a small run. This process imports modules and does nothing
else, so that a forked worker starts in the state of one that was executed and knows nothing of other runs.

FD is a socket of type SOCK_SEQPACKET. Each message that comes in is the path of a run folder, for which a worker is
started. Messages that go out, in JSON: `{"ready": true}` after the imports, `{"started": PID}` for each run in order,
and `{"ended": PID, "returncode": N}`, with the exit code or the negative signal. The server ends when the socket is
closed; workers that still train go on.
"""

import gc
import json
import os
import select
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from attnzoo.worker.malloc import restart_with_tunables

POLL_SECONDS = 0.1  # between looks at workers that may have ended
MAX_MESSAGE = 65536  # bytes


def main(fd: int) -> int:
    """Serve until the socket is closed; returns the exit code of the server, and in each worker that of its run."""
    from attnzoo import environment
    from attnzoo.worker import __main__ as worker

    worker.import_modules()
    environment.loaded_sources()  # of what was imported: workers record it, even if a file changes in the meantime
    with socket.socket(fileno=fd) as connection:
        connection.set_inheritable(False)
        run = _serve(connection)
    if run is None:
        return 0
    sys.argv = [str(worker.__file__), run]  # which is recorded
    return worker.main(run)


def _serve(connection: socket.socket) -> str | None:
    """In each worker the folder of its run; None in this process, at the end."""
    gc.collect()
    gc.freeze()  # collections in a worker would copy the pages of all imported modules
    _send(connection, ready=True)
    while True:
        _report_ended(connection)
        if not select.select([connection], [], [], POLL_SECONDS)[0]:
            continue
        run = connection.recv(MAX_MESSAGE).decode(errors="surrogateescape")
        if not run:
            return None
        pid = os.fork()
        if pid == 0:
            os.setsid()  # as the launcher kills process groups
            _redirect_stderr(Path(run))
            return run
        _send(connection, started=pid)


def _report_ended(connection: socket.socket) -> None:
    with suppress(ChildProcessError):  # there are none
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            _send(connection, ended=ended[0], returncode=os.waitstatus_to_exitcode(ended[1]))


def _send(connection: socket.socket, **message: Any) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the launcher has ended
        connection.send(json.dumps(message).encode())


def _redirect_stderr(run: Path) -> None:
    """To log.txt of the run, for what the logger does not write, such as the message of a crash."""
    from attnzoo.files import open_for_appending
    from attnzoo.rundir.folder import RunFolder

    with suppress(OSError), open_for_appending(RunFolder(run).log) as log:
        os.dup2(log.fileno(), sys.stderr.fileno())


if __name__ == "__main__":
    restart_with_tunables()
    sys.exit(main(int(sys.argv[1])))
