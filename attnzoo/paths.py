"""Paths that users give, in arguments, options and experiment files."""

import os
from collections.abc import Sequence
from os.path import exists, isdir, islink
from pathlib import Path

from attnzoo.errors import UserError, check_type


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded. Raises TypeError for what is no path."""
    check_type("path", path, (str, os.PathLike), "a path")
    return Path(os.path.expanduser(path))  # unlike Path.expanduser it does not raise for an unknown user


def argument_path(text: str) -> Path:
    """The path in an argument of a command. Raises ValueError for an empty one, often a variable that is not set.

    `Path("")` is the current folder, in which a command would read and write.
    """
    if not text:
        raise ValueError("an empty path")
    return user_path(text)


argument_path.__name__ = "path"  # as argparse says it: "invalid path value: ''"


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path without links; unlike Path.resolve it does not raise for a link that leads to itself."""
    return Path(os.path.realpath(path))


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


def why_no_file(path: str | os.PathLike[str]) -> str:
    """Why a path is not that of a file: "is a folder", "not a regular file", "Permission denied" or "no such file"."""
    if isdir(path):
        return "is a folder, not a file"
    return "not a regular file" if exists(path) else denied(path) or "no such file"


def why_no_folder(path: str | os.PathLike[str]) -> str:
    """Why a path is not that of a folder: "is a file", "Permission denied" or "no such folder"."""
    return "is a file, not a folder" if exists(path) else denied(path) or "no such folder"


def display_name(path: str | os.PathLike[str]) -> str:
    """The name of a file as text: bytes that are not UTF-8 are replaced, as pages and pictures cannot hold them."""
    return os.fsencode(os.path.basename(path)).decode(errors="replace")


def output_file(path: str | os.PathLike[str], suffixes: Sequence[str] = (), key: str = "output") -> Path:
    """A file that is going to be written, `~` expanded; folders above it that do not exist are made with it.

    `suffixes` are those allowed, such as ".png", in upper case too; `key` is the argument that names the file. Raises
    UserError, before any work is done, for another suffix, a folder, a link that leads nowhere, and a place where
    nothing can be written.
    """
    file = user_path(path)
    if isdir(file):
        example = f", such as {file / f'NAME{suffixes[0]}'}" if suffixes else ""
        raise UserError(f"{key} = {file}: is a folder; name a file{example}", key=key)
    if suffixes and file.suffix.lower() not in suffixes:
        raise UserError(f"{key} = {file}: expected a name that ends in {_listed(suffixes)}", key=key)
    _check_name(file, f"{key} = {file}", key)
    _check_writable(file.absolute().parent, f"{key} = {file}", key)
    return file


def output_folder(path: str | os.PathLike[str], key: str = "folder", writable: bool = True) -> Path:
    """A folder that is going to be written, `~` expanded.

    Raises UserError for a file, a link that leads nowhere, or, if it must be `writable`, if nothing can be written.
    """
    folder = user_path(path)
    if exists(folder) and not isdir(folder):
        raise UserError(f"{key} = {folder}: is a file; name a folder", key=key)
    _check_name(folder, f"{key} = {folder}", key)
    _check_writable(folder.absolute(), f"{key} = {folder}", key, writable)
    return folder


def _check_name(path: Path, name: str, key: str) -> None:
    """Raise UserError for a name that is too long, and for a link that leads nowhere or to itself."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if islink(path):
            raise UserError(f"{name}: is a link that leads nowhere", key=key) from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}", key=key) from None


def _check_writable(folder: Path, name: str, key: str, writable: bool = True) -> None:
    """Raise UserError unless the folder, or the nearest above it that exists, is one, and is `writable`."""
    above = next(parent for parent in (folder, *folder.parents) if exists(parent))
    if not isdir(above):
        raise UserError(f"{name}: {above} is not a folder", key=key)
    if writable and not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{name}: the folder {above} cannot be written to", key=key)


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
