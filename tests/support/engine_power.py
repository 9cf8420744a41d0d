"""A simulated disk that loses unsynced data at a power failure."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest


class PowerCut(BaseException):
    """Ends the process; data that was not synced is lost."""


class _Synced(NamedTuple):
    """A file as it was last synced. The open handle keeps its inode number from being used again."""

    handle: int
    size: int

    def read(self) -> bytes:
        return os.pread(self.handle, self.size, 0)


class Disk:
    """Cuts the power before or after a call of os.fsync or os.replace, the `cut_at`-th such moment, or at the end.

    `restore` gives the folder what has survived. If `lose_names`, files are also found under the names that they had
    when their folder was last synced, and so are files that were deleted since; otherwise names are never lost.
    """

    def __init__(self, folder: Path, lose_names: bool, cut_at: int | None = None):
        self.folder, self.lose_names, self.cut_at = folder, lose_names, cut_at
        self.moments = 0
        self._files: dict[int, _Synced] = {}
        self._names: dict[Path, dict[str, int | None]] = {}  # inodes in each folder; None for a folder
        self._survived: dict[Path, bytes] = {}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "Disk":
        for folder, _, names in os.walk(self.folder):
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                self._sync(os.open(path, os.O_RDONLY))
        fsync, replace = os.fsync, os.replace

        def synced(handle: int) -> None:
            self._moment()
            fsync(handle)
            self._sync(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY))
            self._moment()

        def replaced(source: str, target: Path) -> None:
            self._moment()
            replace(source, target)
            self._moment()

        self._patch.setattr(os, "fsync", synced)
        self._patch.setattr(os, "replace", replaced)
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.undo()
        if not self._survived:  # the power is cut after the end
            self._survived = self._survivors()
        for file in self._files.values():
            os.close(file.handle)

    def restore(self) -> None:
        """Replace the content of the folder by what survived."""
        while self.folder.exists():  # the thread of TensorBoard's writer, which a power cut would end, may add a file
            shutil.rmtree(self.folder, ignore_errors=True)
        for path, content in self._survived.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _moment(self) -> None:
        self.moments += 1
        if self.moments == self.cut_at:
            self._survived = self._survivors()
            raise PowerCut

    def _sync(self, handle: int) -> None:
        """Record the current state of a file or folder; takes ownership of the handle."""
        status = os.fstat(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self._names[path] = {entry.name: None if entry.is_dir() else entry.inode() for entry in os.scandir(path)}
            os.close(handle)
        else:
            if status.st_ino in self._files:
                os.close(self._files[status.st_ino].handle)
            self._files[status.st_ino] = _Synced(handle, status.st_size)

    def _survivors(self) -> dict[Path, bytes]:
        if not self.lose_names:
            paths = [path for path in self.folder.rglob("*") if path.is_file()]
            return {path: self._content(path.stat().st_ino) for path in paths}
        synced = [
            folder for folder in self._names if folder == self.folder or folder.name in self._names[folder.parent]
        ]
        names = {folder / name: inode for folder in synced for name, inode in self._names[folder].items()}
        return {path: self._content(inode) for path, inode in names.items() if inode is not None}

    def _content(self, inode: int) -> bytes:
        return self._files[inode].read() if inode in self._files else b""
