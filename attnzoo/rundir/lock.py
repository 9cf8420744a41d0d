"""Exclusive lock on a run folder, across nodes."""

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from attnzoo.errors import UserError
from attnzoo.rundir import process
from attnzoo.rundir.attempts import job_id, node_name
from attnzoo.rundir.folder import RunFolder, has_types, open_lock, parse_json

LOCK = ".lock"  # in a run folder
STALE_SECONDS = 60  # an older heartbeat is stale
LOCK_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

log = logging.getLogger(__name__)


@contextmanager
def run_lock(folder: Path, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a folder, waiting up to `wait` seconds for it.

    Uses flock, which the kernel releases when the process dies. Not every network file system shares flock between
    nodes, so the owner is also written to the file. A remote owner holds the lock while the heartbeat of its run is
    fresh, unless it is a previous start of the same job.

    Raises UserError if another process holds the lock, with its name, and if the folder cannot be written.
    """
    end = time.monotonic() + wait
    path = folder / LOCK
    with open_lock(path) as file:
        while (owner := _try_acquire(file, RunFolder(folder))) is not None:
            if time.monotonic() > end:
                raise UserError(f"{folder}: already being trained by {_format_owner(owner)}")
            time.sleep(0.5)
        _write_owner(file, json.dumps({"pid": os.getpid(), "host": node_name(), "job": job_id()}))
        try:
            yield
        finally:
            with suppress(OSError):
                _write_owner(file, "")


def is_training_here(run: RunFolder, status: Mapping[str, Any]) -> bool:
    """Whether the process in the `status` of a run trains it on this machine.

    In a copy of the folder, the status names the process that trains the original: it holds another lock.
    """
    if not process.is_running_here(status):
        return False
    folders = _locked_folders(status["pid"])
    return not folders or any(folder.exists() and folder.samefile(run.path) for folder in folders)


def _locked_folders(pid: int) -> list[Path]:
    """The folders whose lock files a process has open; none if that may not be read."""
    paths = []
    with suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                paths.append(Path(os.readlink(descriptor).removesuffix(" (deleted)")))
    return [path.parent for path in paths if path.name == LOCK]


def _try_acquire(file: IO[bytes], run: RunFolder) -> dict[str, Any] | None:
    """Try to acquire the lock; returns its owner, or None on success."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_owner(file) or {"pid": "?", "host": "?", "job": None}
    except OSError as error:
        if error.errno not in LOCK_UNSUPPORTED:
            raise
    owner = _read_owner(file)
    if owner is None or _is_stale(owner, run):
        if owner is not None:
            log.warning("%s: took over the stale lock of %s", run.path, _format_owner(owner))
        return None
    fcntl.flock(file, fcntl.LOCK_UN)
    return owner


def _is_stale(owner: dict[str, Any], run: RunFolder) -> bool:
    """Whether the owner recorded in the file has ended. flock succeeded, but may not work between nodes."""
    if owner["host"] == node_name() or (owner["job"] is not None and owner["job"] == job_id()):
        return True
    heartbeat = run.heartbeat()
    return heartbeat is None or time.time() - heartbeat > STALE_SECONDS


def _read_owner(file: IO[bytes]) -> dict[str, Any] | None:
    file.seek(0)
    owner = parse_json(file.read())
    types = {"pid": int, "host": str, "job": str | None}
    return owner if has_types(owner, types, list(types)) else None  # unlocked, or the owner died while writing


def _write_owner(file: IO[bytes], content: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(content.encode())
    file.flush()


def _format_owner(owner: dict[str, Any]) -> str:
    job = f", job {owner['job']}" if owner["job"] else ""
    return f"process {owner['pid']} on {owner['host']}{job}"
