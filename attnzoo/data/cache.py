"""Caches: samples in memory, and generated folders shared between processes."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from attnzoo.errors import UserError
from attnzoo.paths import user_path

T = TypeVar("T")


class SampleCache(Generic[T]):
    """Calls `load(index)`; keeps the results in memory if `enabled`."""

    def __init__(self, load: Callable[[int], T], enabled: bool):
        self._load, self._enabled = load, enabled
        self._samples: dict[int, T] = {}

    def __call__(self, index: int) -> T:
        if not self._enabled:
            return self._load(index)
        if index not in self._samples:
            self._samples[index] = self._load(index)
        return self._samples[index]


def cache_root() -> Path:
    """ATTNZOO_CACHE, or attnzoo in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    override = os.environ.get("ATTNZOO_CACHE")
    if override:
        return user_path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnzoo"


def _open_unlinked(path: str, flags: int) -> int:
    """Open a file but not what a link of that name leads to: a shared cache may be writable by others."""
    return os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW, 0o666)


def cached_folder(name: str, key: Mapping[str, Any], generate: Callable[[Path], None]) -> Path:
    """The folder of `name` for `key` (JSON values), filled by `generate` on first use.

    Atomic: `generate` writes to a temporary folder, which is then renamed, under a file lock. Raises UserError if the
    cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_root() / name / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w", opener=_open_unlinked) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                partial.mkdir()
                generate(partial)
                partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be written ({error}); set ATTNZOO_CACHE to another folder"
        ) from error
    return folder
