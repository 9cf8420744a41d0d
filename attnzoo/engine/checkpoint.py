"""Crash-safe checkpoints: written atomically, verified by a checksum in the file name, loaded with weights_only=True.

File name: step-{optimizer steps:08d}.{first 16 hex digits of the SHA-256}.pt. The latest two are kept, and best-*.pt.
"""

import hashlib
import io
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from attnzoo.errors import UserError
from attnzoo.files import open_file, read_bytes
from attnzoo.rundir.folder import atomic_write

log = logging.getLogger(__name__)

FILENAME_PATTERN = re.compile(r"(?P<kind>step|best)-(?P<step>\d+)\.(?P<checksum>[0-9a-f]{16})\.pt")
KEEP_LAST = 2


class CorruptCheckpointError(Exception):
    """The checksum of a file does not match its name."""


class CheckpointManager:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write `state` (tensors, numbers, strings, lists and dicts of them); keep the `KEEP_LAST` latest files."""
        buffer = io.BytesIO()
        try:
            torch.save(state, buffer)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            raise MemoryError(f"not enough memory for the checkpoint of step {step}") from error
        content = buffer.getbuffer()
        path = self.folder / f"step-{step:08d}.{_checksum(content)}.pt"
        with atomic_write(path, "wb") as file:
            file.write(content)
        leftovers = self.folder.glob(".*.pt.*")  # of interrupted writes
        for old in [*self._files("step")[KEEP_LAST:], *leftovers]:
            old.unlink()
        return path

    def save_best(self, path: Path) -> None:
        """Keep a copy of the checkpoint `path` as the best so far."""
        best = path.with_name(path.name.replace("step", "best", 1))
        if not best.exists():
            with atomic_write(best, "wb") as target, open_file(path) as source:
                shutil.copyfileobj(source, target)
        for old in self._files("best"):
            if old != best:
                old.unlink()

    def latest(self) -> Path | None:
        """The latest checkpoint, unverified; None if there is none."""
        return next(iter(self._files("step")), None)

    def best(self) -> Path | None:
        """The checkpoint with the best validation metric; None before the first evaluation."""
        return next(iter(self._files("best")), None)

    def newest_valid(self) -> Path | None:
        """The latest checkpoint whose checksum is right; None if nothing was saved.

        A corrupt file is logged and renamed to `*.corrupt`, and the previous checkpoint is used. Raises UserError if
        all are corrupt: training from scratch would overwrite the metrics.
        """
        files = self._files("step") + self._files("best")
        for path in files:
            try:
                load_checkpoint(path)
            except CorruptCheckpointError as error:
                path.rename(path.with_suffix(".corrupt"))
                log.warning("%s; falling back to the previous checkpoint", error)
            else:
                return path
        if files:
            raise UserError(f"{self.folder}: all checkpoints are corrupt; delete the run folder to train from scratch")
        return None

    def _files(self, kind: str) -> list[Path]:
        """The files of one kind, latest first."""
        names = [path.name for path in self.folder.glob(f"{kind}-*.pt")]
        matches = [match for name in names if (match := FILENAME_PATTERN.fullmatch(name))]
        return [self.folder / match[0] for match in sorted(matches, key=lambda match: -int(match["step"]))]


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in `path`. Raises CorruptCheckpointError if the checksum in its name does not match."""
    content = read_bytes(path, limit=None)
    match = FILENAME_PATTERN.fullmatch(path.name)
    if match and _checksum(content) != match["checksum"]:
        raise CorruptCheckpointError(f"{path}: corrupt checkpoint, checksum mismatch")
    return dict(torch.load(io.BytesIO(content), map_location=device, weights_only=True))


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
