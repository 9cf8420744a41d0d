"""Copies of the code for queued jobs, so that editing the source does not change them."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import attnzoo
from attnzoo.attention.plugin_files import plugin_files
from attnzoo.attention.plugins import snapshot_folder
from attnzoo.environment import GIT_STATE, git_state
from attnzoo.errors import UserError

PACKAGE = Path(attnzoo.__file__).parent


def create_snapshot(folder: Path, plugins: Iterable[str]) -> Path:
    """Copy attnzoo, its compiled library and the `plugins` that are files to a folder below `folder`.

    Plugins are copied with the modules of their folders that they import. The folder is named by a hash of its content,
    so that the same code is copied once. Raises UserError for a plugin that cannot be read.
    """
    files = dict(_package_files())
    try:
        for plugin in (plugin for plugin in plugins if plugin.endswith(".py")):
            subfolder = Path("plugins", snapshot_folder(plugin))
            files |= {subfolder / name: path for name, path in plugin_files(plugin).items()}
        target = folder / _content_hash(files)
    except OSError as error:
        raise UserError(f"plugins: {error.filename}: cannot be read ({error.strerror})", key="plugins") from None
    if not target.is_dir():
        _copy(files, target)
    return target


def _package_files() -> Iterator[tuple[Path, Path]]:
    """(path in the snapshot, current path) of every file of the package."""
    for parent, folders, names in os.walk(PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(parent, name)
            yield Path(PACKAGE.name) / path.relative_to(PACKAGE), path


def _content_hash(files: dict[Path, Path]) -> str:
    sha = hashlib.sha256()
    for target, path in sorted(files.items()):
        sha.update(f"{target}\0{path.stat().st_size}\0".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


def _copy(files: dict[Path, Path], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()
    for target, path in files.items():
        (partial / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / target)
    state = git_state() or {"commit": "unknown: not a git checkout", "diff": ""}
    (partial / GIT_STATE).write_text(json.dumps(state), encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:  # another submission created it meanwhile
        shutil.rmtree(partial)
        if not folder.is_dir():
            raise
