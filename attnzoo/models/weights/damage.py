"""What is wrong with a file that cannot be read as weights: mostly a download that failed."""

import zipfile
from pathlib import Path

from attnzoo.files import open_file

AGAIN = "download it again"
_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
_POINTER = b"version https://git-lfs"
_ZIP, _PICKLE = b"PK", b"\x80"  # torch's files since 1.6, and before
_MAX_HEADER = 10**8  # bytes of safetensors


def damage(file: Path, error: Exception) -> str:
    """Why a file of weights raised `error`, as the end of a sentence about it; "" for anything but a failed download.

    Raises OSError if the file cannot be opened.
    """
    with open_file(file) as opened:
        head, size = opened.read(1024), file.stat().st_size
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not size:
        return f"is empty: {AGAIN}"
    if text.lower().startswith(_PAGE):
        return "is a web page: download the file itself"
    if text.startswith(_POINTER):
        return "is a pointer of Git LFS, without the weights: fetch them with git lfs pull"
    if _is_cut(file, head, error):
        return f"is cut short or damaged: {AGAIN}"
    return ""


def _is_cut(file: Path, head: bytes, error: Exception) -> bool:
    if file.suffix == ".json":
        return isinstance(error, ValueError)
    if file.suffix == ".safetensors":  # the length of the header, and the header, which is JSON
        return len(head) < 9 or (int.from_bytes(head[:8], "little") <= _MAX_HEADER and head[8:9] == b"{")
    if head.startswith(_ZIP):
        return not zipfile.is_zipfile(file)
    ended = isinstance(error, (EOFError, IndexError)) or "EOF" in str(error) or "truncated" in str(error)
    return head.startswith(_PICKLE) and ended
