"""The files of one run: their names and formats. Imports neither torch nor omegaconf."""

import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from attnzoo.errors import UserError

STATES = ("pending", "running", "interrupted", "cancelled", "failed", "done")

RESERVE_BYTES = 65536
# The first and the last line of a config.yaml: without its last line the file was cut short.
CONFIG_START, CONFIG_END = '# The last line is "...".\n', "...\n"


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file atomically: readers see the old or the new content, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(handle)


def check_config(path: Path) -> None:
    """Raise UserError, with how to mend it, if the config of a run is missing or was cut short.

    Configs of earlier versions have no mark of their end: of these, only the last line is checked.
    """
    mend = "restore it, or delete the run's folder to train it again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {mend}") from None
    if not content.endswith(b"\n") or is_cut_short(content):
        raise UserError(f"{path}: corrupt, cut short; {mend}")


def is_cut_short(content: bytes) -> bool:
    """Whether this is the beginning of a config that was written with its end marked."""
    return content.startswith(CONFIG_START.encode()) and not content.endswith(f"\n{CONFIG_END}".encode())


class RunFolder:
    """`runs/<experiment>/<run>/`: config, metrics, status, checkpoints, log."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.status = self.path / "status.json"
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.txt"
        self.environment = self.path / "environment.json"
        self.attempts = self.path / "attempts.jsonl"
        self._reserved_file = self.path / ".reserve"
        self.tensorboard = self.path  # event files are in the run folder, so that it is one run in TensorBoard

    def read_status(self) -> dict[str, Any]:
        """state (one of STATES), step, steps, heartbeat, error …; `{"state": "pending"}` if never started.

        Raises UserError if the file is corrupt.
        """
        try:
            status = json.loads(self.status.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"state": "pending"}
        except ValueError:  # not JSON, or not text
            status = None
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise UserError(f"{self.status}: corrupt; delete it to treat the run as unfinished")
        return status

    def write_status(self, **fields: Any) -> None:
        """Merge `fields` into the status file, with the time as `heartbeat` (seconds since the epoch)."""
        status = self.read_status() | fields | {"heartbeat": time.time()}
        with atomic_write(self.status) as file:
            json.dump(status, file, indent=1)

    def heartbeat(self) -> float | None:
        """Time of the last heartbeat: when the status file was modified, by the clock of the file system."""
        try:
            return self.status.stat().st_mtime
        except FileNotFoundError:
            return None

    def update_heartbeat(self) -> None:
        """Record that the run is alive."""
        os.utime(self.status)

    def reserve_space(self) -> None:
        """Reserve disk space, so that a failure can be recorded on a full disk."""
        self._reserved_file.write_bytes(b"0" * RESERVE_BYTES)

    def free_reserved_space(self) -> None:
        """Free the reserved disk space."""
        self._reserved_file.unlink(missing_ok=True)

    def last_step(self) -> int:
        """The step of the latest checkpoint, unverified, from its name; 0 if there is none."""
        names = (path.name.split(".")[0] for path in self.checkpoints.glob("step-*.pt"))
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl in order, each with its `step`, without a last line that a crash truncated.

        Raises UserError, with the line number and how to mend it, for any other malformed line.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_bytes().split(b"\n")[:-1]
        return [self._row(line, number) for number, line in enumerate(lines, start=1) if line]

    def corruption(self) -> str | None:
        """Which file of a run that was started is missing or corrupt, and how to mend it; None if none is.

        Of the config, only that it is complete; it is parsed where it is needed.
        """
        try:
            if self.read_status()["state"] == "pending" and not self.metrics.exists():
                return None
            self.read_metrics()
            check_config(self.config)
        except UserError as error:
            return str(error)
        return None

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int or not all(map(_is_number, row.values())):
            raise UserError(
                f"{self.metrics}:{number}: corrupt row, without `step` or with values that are not numbers; restore "
                "the file, or delete the run's folder to train it again; if the run is not done and was last saved "
                "before this row, it is enough to delete this row and those below"
            )
        return row


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
