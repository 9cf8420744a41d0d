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
from attnzoo.paths import denied

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


def for_each_image(fn: Callable[[Path, int, int], T], image_dir: Path, entries: list[dict[str, Any]]) -> list[T]:
    """`fn(path, height, width)` of each entry, computed by threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda e: fn(image_dir / e["file_name"], e["height"], e["width"]), entries))
