"""Finding the images that are given on a command line, in folders and alone."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from attnzoo.data.images import configure_pillow, suffixes
from attnzoo.errors import UserError
from attnzoo.paths import real_path, user_path


@dataclass(frozen=True)
class ImageFile:
    """A file.

    - `name`: relative to the folder that was given, or the file's own; the path that was given, if others have this
      name too
    - `picture`: the name of a picture of it, unique among the images whatever the suffix
    """

    path: Path
    name: str
    picture: str


def find_images(given: Sequence[str | Path], exclude: Path | None = None) -> list[ImageFile]:
    """The files that are given, and those in folders whose suffix Pillow knows, at any depth, sorted; each once.

    What cannot be read, such as a link that leads nowhere, is among them, so that whoever reads them names it.

    `exclude`, and files below it, which may be pictures of these images, are left out of folders. Raises UserError for
    a path that does not exist, a wrong limit of pixels, and without images.
    """
    configure_pillow()
    left_out = None if exclude is None else real_path(exclude)
    files: dict[Path, tuple[Path, str]] = {}
    hidden = False
    for path in map(user_path, given):
        if not path.exists():
            raise UserError(f"{path}: no such image or folder")
        for file in _in_folder(path) if path.is_dir() else [path]:
            resolved = real_path(file)
            is_excluded = path.is_dir() and left_out in (resolved, *resolved.parents)
            hidden |= is_excluded
            if resolved in files or is_excluded:
                continue
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            files[resolved] = file, name
    if not files:
        outside = f" outside of {exclude}, where the output goes" if hidden else ""
        raise UserError(f"no images in {', '.join(map(str, given))}{outside}")
    counts = Counter(name for _, name in files.values())
    taken: set[str] = set()
    return [
        ImageFile(file, name if counts[name] == 1 else file.as_posix(), _unused(name, taken))
        for file, name in files.values()
    ]


def _in_folder(folder: Path) -> Iterator[Path]:
    """Raises PermissionError for a folder below that may not be listed: its images would be left out unnoticed."""

    def refuse(error: OSError) -> None:
        raise error

    known = suffixes()
    found = sorted(Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    return (path for path in found if path.suffix.lower() in known)


def _unused(name: str, taken: set[str]) -> str:
    """`name`, with a number if another image has it, whatever its suffix: pictures have the same suffix."""
    path, number = PurePosixPath(name), 1
    while (stem := str(path.with_suffix(""))) in taken:
        number += 1
        path = PurePosixPath(name).with_stem(f"{PurePosixPath(name).stem}-{number}")
    taken.add(stem)
    return str(path)
