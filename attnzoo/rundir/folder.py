"""The files of one run: their names and formats. Imports neither torch nor omegaconf."""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from attnzoo.errors import UserError
from attnzoo.files import decode_json, open_for_appending, read_bytes
from attnzoo.rundir.metrics import STATUS, is_final

STATES = ("pending", "running", "interrupted", "cancelled", "failed", "done")
# Fields of status.json and their types; metrics are numbers. A state may require one.
FIELDS: dict[str, Any] = dict.fromkeys(STATUS.values(), int | float) | {
    "state": str,
    "step": int,
    "steps": int,
    "evaluated": int,
    "eta": int | float | None,
    "heartbeat": int | float,
    "error": str | None,
    "signal": str | None,
    "job": str | None,
    "host": str,
    "pid": int,
    "started": str | None,
    "metrics_sha256": str,  # of metrics.jsonl; once done
    "config_sha256": str,  # of the config that the run has started with, see `RunFolder.config_hash`
}
REQUIRED = {"failed": "error", "interrupted": "signal"}

RESERVE_BYTES = 65536
# The first and the last line of a config.yaml: without its last line the file was cut short.
CONFIG_START, CONFIG_END = '# The last line is "...".\n', "...\n"
CONFIG_HASH = "# sha256 of the lines below: "  # the second line
CONFIG_COMMENTS = (CONFIG_START.encode(), CONFIG_HASH.encode())
MEND_STATUS = "delete it to treat the run as unfinished"
MEND = "restore it, or delete the run's folder to train it again"


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file atomically: readers see the old or the new content, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # not by tempfile, whose files nobody else may read: the mode is that of the umask
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None  # what the user knows
        raise


def open_lock(path: Path) -> IO[bytes]:
    """A file that is locked, created if missing. Raises UserError if it is no file, or cannot be written."""
    try:
        return open_for_appending(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise UserError(f"{path}: not a regular file; delete it") from None
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _unreadable(path: Path, error: OSError, mend: str) -> UserError:
    """The error for a file that cannot be read; one that may not be read needs no mending."""
    return UserError(
        f"{path}: {error.strerror}" if isinstance(error, PermissionError) else f"{path}: {error.strerror}; {mend}"
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(handle)


def config_text(values: str) -> str:
    """The content of a config.yaml with these `values`, in YAML; `check_config` notices any change to it."""
    text = values + CONFIG_END
    return f"{CONFIG_START}{CONFIG_HASH}{_sha256(text.encode())}\n{text}"


def check_config(path: Path) -> None:
    """Raise UserError, with how to mend it, if the config of a run is missing, was cut short or has changed.

    Of configs of earlier versions, which have no hash, only that they are text and end with a complete line.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise _unreadable(path, error, MEND) from None
    if not content.endswith(b"\n") or is_cut_short(content):
        raise UserError(f"{path}: corrupt, cut short; {MEND}")
    if not has_valid_hash(content):
        reason = "changed since it was written"
        raise UserError(f"{path}: corrupt, {reason}; {MEND}; if you changed it on purpose, delete its second line")
    try:
        content.decode()
    except UnicodeDecodeError:
        is_text = False
    else:
        is_text = b"\0" not in content
    if not is_text:
        raise UserError(f"{path}: corrupt, not a text file; {MEND}")


def has_valid_hash(content: bytes) -> bool:
    """Whether a config is as it was written; True for one without a hash."""
    _, mark, rest = content.partition(CONFIG_HASH.encode())
    expected, _, text = rest.partition(b"\n")
    return not mark or expected.decode(errors="replace") == _sha256(text)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_cut_short(content: bytes) -> bool:
    """Whether this is the beginning of a config that was written with its end marked."""
    return content.startswith(CONFIG_START.encode()) and not content.endswith(f"\n{CONFIG_END}".encode())


class RunFolder:
    """`runs/<experiment>/<run>/`: config, metrics, status, checkpoints, pictures, log."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.status = self.path / "status.json"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.log = self.path / "log.txt"
        self.environment = self.path / "environment.json"
        self.attempts = self.path / "attempts.jsonl"
        self._reserved_file = self.path / ".reserve"
        self.tensorboard = self.path  # event files are in the run folder, so that it is one run in TensorBoard

    def check_kinds(self) -> None:
        """Raise UserError if something else lies where the run writes a file or a folder: opening a pipe never ends."""
        for path in (self.log, self.environment, self.attempts, self._reserved_file, self.metrics, self.status):
            if os.path.lexists(path) and not path.is_file():
                raise UserError(f"{path}: not a regular file; delete it")
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise UserError(f"{self.checkpoints}: not a folder; delete it")

    def read_status(self) -> dict[str, Any]:
        """state (one of STATES), step, steps, heartbeat, error …; `{"state": "pending"}` if never started.

        Raises UserError if the file is corrupt: cannot be read, or is not JSON of the right types.
        """
        try:
            status = parse_json(read_bytes(self.status))
        except FileNotFoundError:
            return {"state": "pending"}
        except OSError as error:
            raise _unreadable(self.status, error, MEND_STATUS) from None
        if not is_status(status):
            raise UserError(f"{self.status}: corrupt; {MEND_STATUS}")
        return dict(status)

    def write_status(self, **fields: Any) -> None:
        """Merge `fields` into the status file, with the time as `heartbeat` (seconds since the epoch)."""
        status = self.read_status() | fields | {"heartbeat": time.time()}
        status.pop("metrics_sha256", None)
        if status["state"] == "done":
            with suppress(OSError):
                status["metrics_sha256"] = self._metrics_hash()
        with atomic_write(self.status) as file:
            json.dump(status, file, indent=1)

    def heartbeat(self) -> float | None:
        """Time of the last heartbeat: when the status file was modified, by the clock of the file system."""
        try:
            return self.status.stat().st_mtime
        except OSError:
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
        steps = (path.name.split(".")[0].removeprefix("step-") for path in self.checkpoints.glob("step-*.pt"))
        return max((int(step) for step in steps if step.isdecimal()), default=0)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl in order, each with its `step`, without a last line that a crash truncated.

        Raises UserError, with the line number and how to mend it, for any other malformed line, and if the file cannot
        be read.
        """
        try:
            lines = read_bytes(self.metrics).split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.metrics, error, MEND) from None
        return [self._row(line, number) for number, line in enumerate(lines, start=1) if line]

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The status and the rows of metrics.

        Raises UserError, with how to mend it, if a file of a run that was started is missing or corrupt. Of the config
        that it has not changed; it is parsed where it is needed.
        """
        self._check_folder()
        status = self.read_status()  # first: metrics.jsonl is complete when the status is "done"
        if status["state"] == "pending" and not self.metrics.exists():
            return status, []
        rows = self.read_metrics()
        check_config(self.config)
        if status["state"] == "done" and not is_final(rows, status.get("steps", 0)):
            self._raise_incomplete(status.get("steps", 0), rows)
        if status["state"] == "done":
            self._check_unchanged(status, rows)
        if os.path.lexists(self.attempts) and not self.attempts.is_file():
            raise UserError(f"{self.attempts}: not a regular file; delete it")
        return status, rows

    def corruption(self) -> str | None:
        """Which file of a run that was started is missing or corrupt, and how to mend it; None if none is."""
        try:
            self.read()
        except UserError as error:
            return str(error)
        return None

    def _check_folder(self) -> None:
        """Raise UserError if something else lies in place of the folder; a run that was never started may have none."""
        try:
            is_folder = stat.S_ISDIR(self.path.stat().st_mode)
        except PermissionError:  # as is said of its files
            return
        except OSError:
            is_folder = not os.path.lexists(self.path)
        if not is_folder:
            raise UserError(f"{self.path}: not a folder; delete it")

    def _raise_incomplete(self, steps: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Raise UserError for a finished run without its last rows."""
        reason = f"{self.metrics}: corrupt, no validation metrics at step {steps}, the last of a finished run"
        if rows and rows[-1]["step"] >= steps and self.last_step() >= steps:  # the checkpoint has no later rows
            raise UserError(f"{reason}; restore it, or delete {self.status.name} next to it to evaluate the run again")
        raise UserError(f"{reason}; {MEND}")

    def config_hash(self) -> str:
        """Hash of config.yaml without its own lines about its hash and end. Raises OSError."""
        lines = read_bytes(self.config).splitlines(keepends=True)
        return _sha256(b"".join(line for line in lines if not line.startswith(CONFIG_COMMENTS)))

    def _metrics_hash(self) -> str:
        """Hash of the complete lines of metrics.jsonl. Raises OSError."""
        return _sha256(read_bytes(self.metrics).rpartition(b"\n")[0])

    def _check_unchanged(self, status: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> None:
        """Raise UserError if config, metrics, or the last metrics in the status of a finished run have changed."""
        if status.get("config_sha256", started := self.config_hash()) != started:
            purpose = f"if you changed it on purpose, delete config_sha256 from {self.status.name}"
            raise UserError(f"{self.config}: corrupt, changed since the run started; {MEND}; {purpose}")
        recorded = status.get("metrics_sha256")
        if recorded is not None and recorded != self._metrics_hash():
            purpose = f"if you changed it on purpose, delete metrics_sha256 from {self.status.name}"
            raise UserError(f"{self.metrics}: corrupt, changed since the run ended; {MEND}; {purpose}")
        for key, name in STATUS.items():
            if key in rows[-1] and status.get(name, rows[-1][key]) != rows[-1][key]:
                raise UserError(f"{self.status}: corrupt, {name} is not that of {self.metrics.name}; {MEND_STATUS}")

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        row = parse_json(line)
        if not is_row(row):
            raise UserError(
                f"{self.metrics}:{number}: corrupt row, without `step` or with values that are not numbers; restore "
                "the file, or delete the run's folder to train it again; if the run is not done and was last saved "
                "before this row, it is enough to delete this row and those below"
            )
        return dict(row)


def parse_json(content: bytes) -> Any:
    """The value in a JSON file; None if `files.decode_json` does not accept it."""
    try:
        return decode_json(content)
    except (ValueError, RecursionError):
        return None


def has_types(values: Any, types: Mapping[str, Any], required: Sequence[str] = ()) -> bool:
    """Whether `values` is an object with the `required` keys in which those of `types`, if present, have these types.

    Numbers must be finite, integers of 64 bits.
    """
    if not isinstance(values, dict) or any(key not in values for key in required):
        return False
    if not all(isinstance(values[key], kind) for key, kind in types.items() if key in values):
        return False
    return all(_is_number(values[key]) for key in types if type(values.get(key)) in (int, float))


def is_status(values: Any) -> bool:
    """Whether `values` are those of a status.json."""
    if not has_types(values, FIELDS, ["state"]) or values["state"] not in STATES:
        return False
    required = REQUIRED.get(values["state"])
    return required is None or isinstance(values.get(required), str)


def is_row(values: Any) -> bool:
    """Whether `values` are those of a row of metrics.jsonl: a `step`, and numbers."""
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return False
    return all(type(value) is float or _is_number(value) for value in values.values())


def _is_number(value: Any) -> bool:
    """Whether this is a finite number, an integer of 64 bits."""
    return math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**63
