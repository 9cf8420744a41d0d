"""A copy of the code for jobs that start later: editing the source while they wait changes nothing."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import attnzoo
from attnzoo.attention.plugins import snapshot_filename
from attnzoo.environment import SOURCE, source
from attnzoo.errors import UserError

PACKAGE = Path(attnzoo.__file__).parent


def take(folder: Path, plugins: Iterable[str]) -> Path:
    """A folder below `folder` with attnzoo, its compiled library, and the `plugins` that are files.

    The same code gets the same folder. Raises UserError for a plugin that cannot be read.
    """
    files = dict(_package())
    for plugin in plugins:
        if plugin.endswith(".py"):
            files[Path("plugins") / snapshot_filename(plugin)] = Path(plugin)
    try:
        target = folder / _digest(files)
    except OSError as error:
        raise UserError(f"plugins: {error.filename}: cannot be read ({error.strerror})") from None
    if not target.is_dir():
        _copy(files, target)
    return target


def _package() -> Iterator[tuple[Path, Path]]:
    """What the package consists of: its place in the snapshot and where it is now."""
    for parent, folders, names in os.walk(PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(parent, name)
            yield Path(PACKAGE.name) / path.relative_to(PACKAGE), path


def _digest(files: dict[Path, Path]) -> str:
    found = hashlib.sha256()
    for place, path in sorted(files.items()):
        found.update(f"{place}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _copy(files: dict[Path, Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    for place, path in files.items():
        (partial / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / place)
    (partial / SOURCE).write_text(json.dumps(source() or {"commit": "unknown: not a git checkout", "diff": ""}))
    partial.chmod(0o755)
    try:
        partial.rename(target)
    except OSError:  # another submission was faster
        shutil.rmtree(partial)
        if not target.is_dir():
            raise
