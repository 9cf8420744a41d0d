"""Reads the images of a split: which cannot be used, and which are the same."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags

from attnzoo.data.images import check_mode, configure_pillow, open_image, reason_of
from attnzoo.files import read_bytes


class FileState(NamedTuple):
    """An image file. `digest`: a hash of its bytes, "" if it is missing; `error`: why it cannot be used, or ""."""

    size: tuple[int, int]  # upright (width, height), zeros if unreadable
    raw_size: tuple[int, int]  # as stored, before EXIF orientation
    digest: str
    error: str


def read_files(paths: Sequence[Path], done: Callable[[], object] = lambda: None) -> list[FileState]:
    """The state of each image, all decoded, by as many threads as there are CPUs; `done` is called after each."""

    def read(path: Path) -> FileState:
        state = _read(path)
        done()
        return state

    configure_pillow()  # whose error is not one of every image
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(read, paths))


def _read(path: Path) -> FileState:
    if not path.exists():
        return FileState((0, 0), (0, 0), "", "missing")
    digest = ""
    try:
        with open_image(path) as image:
            digest = hashlib.blake2b(read_bytes(path), digest_size=12).hexdigest()
            check_mode(image.mode)
            image.load()
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception as error:  # Pillow's decoders raise anything
        return FileState((0, 0), (0, 0), digest, reason_of(error, path))
    return FileState((height, width) if turned else (width, height), (width, height), digest, "")
