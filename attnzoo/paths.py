"""Paths that users give, in arguments, options and experiment files."""

import os
from collections.abc import Sequence
from os.path import exists, isdir
from pathlib import Path

from attnzoo.errors import UserError, check_type


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded. Raises TypeError for what is no path."""
    check_type("path", path, (str, os.PathLike), "a path")
    return Path(os.path.expanduser(path))  # unlike Path.expanduser it does not raise for an unknown user


def denied(path: str | os.PathLike[str]) -> str:
    """The reason "Permission denied" if a folder above a path may not be entered, else an empty string.

    `isfile` and the like give False for what is there, and for what is missing.
    """
    try:
        os.stat(path)
    except PermissionError as error:
        return str(error.strerror)
    except (OSError, ValueError):
        pass
    return ""


def display_name(path: str | os.PathLike[str]) -> str:
    """The name of a file as text: bytes that are not UTF-8 are replaced, as pages and pictures cannot hold them."""
    return os.fsencode(os.path.basename(path)).decode(errors="replace")


def output_file(path: str | os.PathLike[str], suffixes: Sequence[str] = (), key: str = "output") -> Path:
    """A file that is going to be written, `~` expanded; folders above it that do not exist are made with it.

    `suffixes` are those allowed, such as ".png", in upper case too; `key` is the argument that names the file. Raises
    UserError, before any work is done, for another suffix, a folder, and a place where nothing can be written.
    """
    file = user_path(path)
    if isdir(file):
        example = f", such as {file / f'NAME{suffixes[0]}'}" if suffixes else ""
        raise UserError(f"{key} = {file}: is a folder; name a file{example}", key=key)
    if suffixes and file.suffix.lower() not in suffixes:
        raise UserError(f"{key} = {file}: expected a name that ends in {_listed(suffixes)}", key=key)
    _check_writable(file.absolute().parent, f"{key} = {file}", key)
    return file


def output_folder(path: str | os.PathLike[str], key: str = "folder") -> Path:
    """A folder that is going to be written, `~` expanded. Raises UserError for a file, or if nothing can be written."""
    folder = user_path(path)
    if exists(folder) and not isdir(folder):
        raise UserError(f"{key} = {folder}: is a file; name a folder", key=key)
    _check_writable(folder.absolute(), f"{key} = {folder}", key)
    return folder


def _check_writable(folder: Path, name: str, key: str) -> None:
    """Raise UserError unless files can be written into the folder, or the nearest above it that exists."""
    above = next(parent for parent in (folder, *folder.parents) if exists(parent))
    if not isdir(above):
        raise UserError(f"{name}: {above} is not a folder", key=key)
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{name}: the folder {above} cannot be written to", key=key)


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
