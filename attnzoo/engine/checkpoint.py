"""Checkpoints that survive a crash at any moment: written atomically, named by their checksum, loaded as plain data.

`step-00001200.1f0c….pt` holds the state after 1,200 optimiser steps; the second part of the name is the start of the
file's SHA-256, as in PyTorch's own weight files. The last two are kept, and `best-….pt` beside them.
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
from attnzoo.rundir.folder import atomic_write

log = logging.getLogger(__name__)

FILENAME_PATTERN = re.compile(r"(?P<kind>step|best)-(?P<step>\d+)\.(?P<checksum>[0-9a-f]{16})\.pt")
KEEP_LAST = 2


class CorruptCheckpointError(Exception):
    """A file whose content does not have the checksum in its name."""


class CheckpointManager:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write `state` (tensors, numbers, strings, lists and dicts of them); keep the `KEEP_LAST` latest files."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        path = self.folder / f"step-{step:08d}.{_checksum(content)}.pt"
        with atomic_write(path, "wb") as file:
            file.write(content)
        for old in [*self._files("step")[KEEP_LAST:], *self.folder.glob(".*.pt.*")]:  # the latter: of writes cut short
            old.unlink()
        return path

    def save_best(self, path: Path) -> None:
        """Keep a copy of the checkpoint `path` as the best so far."""
        best = path.with_name(path.name.replace("step", "best", 1))
        if not best.exists():
            with atomic_write(best, "wb") as target, path.open("rb") as source:
                shutil.copyfileobj(source, target)
        for old in self._files("best"):
            if old != best:
                old.unlink()

    def latest(self) -> Path | None:
        """The newest file, sound or not; None where nothing was saved."""
        return next(iter(self._files("step")), None)

    def best(self) -> Path | None:
        """The checkpoint with the best validation metric; None before the first evaluation."""
        return next(iter(self._files("best")), None)

    def newest_valid(self) -> Path | None:
        """The newest checkpoint with the right checksum, or None where nothing was saved.

        A damaged file is reported in the log and renamed to `….damaged`, and the one before is taken. Raises UserError
        when all are damaged: starting over would overwrite the metrics that are there.
        """
        files = self._files("step") + self._files("best")
        for path in files:
            try:
                load_checkpoint(path)
            except CorruptCheckpointError as error:
                path.rename(path.with_suffix(".damaged"))
                log.warning("%s; falling back to the checkpoint before", error)
            else:
                return path
        if files:
            raise UserError(f"{self.folder}: every checkpoint is damaged; delete the run folder to start again")
        return None

    def _files(self, kind: str) -> list[Path]:
        """The files of one kind, newest first."""
        found = [match for path in self.folder.glob(f"{kind}-*.pt") if (match := FILENAME_PATTERN.fullmatch(path.name))]
        return [self.folder / match[0] for match in sorted(found, key=lambda match: int(match["step"]), reverse=True)]


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in `path`; raises CorruptCheckpointError when the file is not what was written under that name."""
    content = path.read_bytes()
    match = FILENAME_PATTERN.fullmatch(path.name)
    if match and _checksum(content) != match["checksum"]:
        raise CorruptCheckpointError(f"{path}: damaged, its content does not have the checksum in its name")
    return dict(torch.load(io.BytesIO(content), map_location=device, weights_only=True))


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
