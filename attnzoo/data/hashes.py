"""Hashes of files, by which a run records the data and weights it was trained with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from attnzoo.files import open_file

FileVersion = tuple[Path, int, int]

_HASHES: dict[FileVersion, str] = {}


def file_version(path: Path) -> FileVersion:
    """Path, modification time and size: equal while a file is unchanged. Raises OSError."""
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


def hash_file(path: Path) -> str:
    """Hash, 16 hexadecimal digits, of a file's content; a process reads an unchanged file once. Raises OSError."""
    version = file_version(path)
    if version not in _HASHES:
        with open_file(path) as file:
            _HASHES[version] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    return _HASHES[version]


def combine_hashes(hashes: Iterable[str]) -> str:
    """One hash, 16 hexadecimal digits, of several in their order."""
    return hashlib.blake2b(" ".join(hashes).encode(), digest_size=8).hexdigest()
