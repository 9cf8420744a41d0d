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
from attnzoo.files import open_for_appending
from attnzoo.paths import output_folder, user_path

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


def check_cache(name: str, key: Mapping[str, Any], writable: bool) -> None:
    """Raise UserError if `cached_folder` could not make its folder: a file is in its place, a name is too long.

    With `writable`, also if the cache may not be written, unless the folder is there; nodes of a cluster may have other
    permissions than this machine.
    """
    root = cache_root()
    variable = "ATTNZOO_CACHE" if os.environ.get("ATTNZOO_CACHE") else "the cache"
    if os.path.isdir(_folder(name, key)):
        return
    try:
        for folder in (root, root / name):
            output_folder(folder, key=variable, writable=writable)
    except UserError as error:
        raise UserError(str(error)) from None  # of no key of an experiment


def _folder(name: str, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return cache_root() / name / digest


def cached_folder(name: str, key: Mapping[str, Any], generate: Callable[[Path], None]) -> Path:
    """The folder of `name` for `key` (JSON values), filled by `generate` on first use.

    Atomic: `generate` writes to a temporary folder, which is then renamed, under a file lock. Raises UserError if the
    cache cannot be written.
    """
    folder = _folder(name, key)
    if os.path.isdir(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # not what a link of that name leads to: a shared cache may be writable by others
        with open_for_appending(folder.with_suffix(".lock"), follow_links=False) as lock:
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
