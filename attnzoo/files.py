"""Opening files that users or other programs hand over: regular files alone, of limited size, JSON of limited depth.

A pipe never ends, a device may do anything, a sparse file of terabytes does not fit in memory, and what is nested deep
ends the functions that walk through it.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

MAX_BYTES = 2**30  # of a text file
MAX_DEPTH = 64  # of nested values in JSON or YAML
MAX_DIGITS = 100  # of an integer in JSON or YAML: more have neither a use nor a float
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape in JSON
JSON_ERRORS = (OSError, ValueError, RecursionError)  # of `read_json`


def open_file(path: str | Path, limit: int | None = None) -> BufferedReader:
    """A file opened for reading, of at most `limit` bytes. Raises OSError, also for what is no regular file."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = _check_regular(handle, path)
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_for_appending(path: str | Path, follow_links: bool = True) -> BufferedRandom:
    """A file opened for appending and reading, created if missing. Raises OSError, also for what is no regular file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW, 0o666)
    try:
        _check_regular(handle, path)
        return os.fdopen(handle, "a+b")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | Path, limit: int | None = MAX_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes. Raises OSError, also for what is no regular file."""
    with open_file(path, limit) as file:
        return file.read()


def read_text(path: str | Path, limit: int | None = MAX_BYTES, errors: str = "strict") -> str:
    """The text of a file in UTF-8, without a byte-order mark. Raises OSError or UnicodeDecodeError."""
    return read_bytes(path, limit).decode("utf-8-sig", errors)


def read_json(path: str | Path, limit: int | None = MAX_BYTES, depth: int | None = MAX_DEPTH) -> Any:
    """The value in a JSON file, checked as `decode_json` does. Raises JSON_ERRORS."""
    return decode_json(read_bytes(path, limit), depth)


def decode_json(content: bytes, depth: int | None = MAX_DEPTH) -> Any:
    """The value in JSON text, in UTF-8 with or without a byte-order mark; `?` for characters that are no text.

    Raises ValueError for anything else, an integer of more than MAX_DIGITS digits, and values nested deeper than
    `depth`; RecursionError for those nested deeper than the decoder goes.
    """
    text = content.decode("utf-8-sig")
    value = _DECODER.decode(text)
    if SURROGATE.search(text):  # a half of a pair alone is no text, and could not be printed
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    if depth is not None and text.count("[") + text.count("{") > depth:
        check_depth(value, depth)
    return value


def check_depth(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError if lists and mappings are nested deeper than `depth`."""
    level = [value]
    for _ in range(depth + 1):
        level = [item for each in level for item in _items(each)]
        if not level:
            return
    raise ValueError(f"nested deeper than {depth} levels")


def reason(error: BaseException) -> str:
    """Why a file cannot be read, without its name."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _check_regular(handle: int, path: str | Path) -> int:
    """The size in bytes of an open file. Raises OSError for what is no regular file."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_integer)
