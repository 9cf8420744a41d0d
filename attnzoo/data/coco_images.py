"""The image files of annotations in COCO format: which are there, and which can be read."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os.path import isfile
from pathlib import Path
from typing import Any, TypeVar

from attnzoo.data.images import ImageReader
from attnzoo.errors import UserError
from attnzoo.paths import denied, real_path

log = logging.getLogger(__name__)
T = TypeVar("T")


def filter_readable(reader: ImageReader, image_dir: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries whose images can be decoded; logs the number of the others and the first."""

    def read_error(path: Path, height: int, width: int) -> str | None:
        try:
            reader.read(path, height, width)
        except UserError as error:
            return str(error)
        return None

    errors = for_each_image(read_error, image_dir, entries)
    bad = [error for error in errors if error]
    if bad:
        log.warning("%s: %d of %d images are skipped; the first: %s", image_dir, len(bad), len(entries), bad[0])
    return [entry for entry, error in zip(entries, errors, strict=True) if not error]


def check_exist(image_dir: Path, entries: list[dict[str, Any]]) -> None:
    """Raise UserError for the first entry without an image file."""
    for entry in entries:
        if not isfile(image_dir / entry["file_name"]):
            path = image_dir / entry["file_name"]
            raise UserError(f"{path}: {denied(path) or 'the image file is missing'}")


def links_outside(image_dir: Path, entries: list[dict[str, Any]]) -> list[str]:
    """The file names that lead out of the image folder, through links too."""
    names = [entry["file_name"] for entry in entries]
    root = real_path(image_dir)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: real_path(image_dir / name), names)
    return [name for name, path in zip(names, found, strict=True) if not path.is_relative_to(root)]


def for_each_image(fn: Callable[[Path, int, int], T], image_dir: Path, entries: list[dict[str, Any]]) -> list[T]:
    """`fn(path, height, width)` of each entry, computed by threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda e: fn(image_dir / e["file_name"], e["height"], e["width"]), entries))
