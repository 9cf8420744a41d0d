"""The files of one run: the only place that knows their names. Imports neither torch nor omegaconf."""

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


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
        self.tensorboard = self.path  # event files lie beside the rest, so that the run is one TensorBoard run

    def read_status(self) -> dict[str, Any]:
        """state (one of STATES), step, steps, heartbeat, error …; `{"state": "pending"}` if never started.

        Raises UserError for a file that is damaged.
        """
        try:
            status = json.loads(self.status.read_text())
        except FileNotFoundError:
            return {"state": "pending"}
        except ValueError:  # not JSON, or not text
            status = None
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise UserError(f"{self.status}: damaged; move it away, and the run counts as not finished")
        return status

    def write_status(self, **fields: Any) -> None:
        """Merge `fields` into the status file and stamp the heartbeat (seconds since the epoch)."""
        status = self.read_status() | fields | {"heartbeat": time.time()}
        with atomic_write(self.status) as file:
            json.dump(status, file, indent=1)

    def heartbeat(self) -> float | None:
        """When the run last gave a sign of life, in seconds since the epoch by the clock of the file system."""
        try:
            return self.status.stat().st_mtime
        except FileNotFoundError:
            return None

    def update_heartbeat(self) -> None:
        """Give a sign of life."""
        os.utime(self.status)

    def reserve_space(self) -> None:
        """Take the room that noting a failure needs, so that a full disk can be noted."""
        self._reserved_file.write_bytes(b"0" * RESERVE_BYTES)

    def free_reserved_space(self) -> None:
        """Give that room back."""
        self._reserved_file.unlink(missing_ok=True)

    def last_step(self) -> int:
        """The step of the newest checkpoint, sound or not, by its name; 0 where there is none."""
        names = (path.name.split(".")[0] for path in self.checkpoints.glob("step-*.pt"))
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl in order, each with its `step`; a last line cut off by a crash is left out.

        Raises UserError, naming the line, for any other that is not a row.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_bytes().split(b"\n")[:-1]
        return [self._row(line, number) for number, line in enumerate(lines, start=1) if line]

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int or not all(map(_is_number, row.values())):
            raise UserError(f"{self.metrics}:{number}: damaged; expected step and other numbers by their names")
        return row


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
