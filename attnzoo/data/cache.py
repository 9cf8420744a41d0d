"""Folders that are made once and then shared by all processes of a user."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attnzoo.errors import UserError


def cache_root() -> Path:
    """ATTNZOO_CACHE, or attnzoo in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    chosen = os.environ.get("ATTNZOO_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnzoo"


def cached_folder(name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder called `name` for `key` (JSON values), filled by `make` if no process has done so before.

    The folder appears whole or not at all: it is filled under another name and renamed, while a lock keeps other
    processes waiting. Raises UserError if the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_root() / name / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                make(partial)
                partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be written ({error}); set ATTNZOO_CACHE to another folder"
        ) from error
    return folder
