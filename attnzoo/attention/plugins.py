"""Attentions from a user's own file or module, outside the package."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from os.path import isdir, isfile
from pathlib import Path
from types import ModuleType

from attnzoo.attention.base import ATTENTIONS
from attnzoo.attention.plugin_files import plugin_files
from attnzoo.errors import UserError
from attnzoo.files import read_bytes
from attnzoo.paths import real_path, user_path, why_no_file

SNAPSHOT_DIR = Path(__file__).resolve().parents[2] / "plugins"  # in a code snapshot
FILE_MODULE = "attnzoo_plugin_"  # begins the module name of a plugin that is a file


def snapshot_folder(source: str) -> str:
    """Name of the folder that holds a plugin, and the modules that it imports, inside a code snapshot."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def load_plugin(source: str | Path, where: str = "") -> list[str]:
    """Import a `.py` file or a module and return the names of the attentions that it registers. Idempotent.

    `source` is a path ending in `.py`, or the dotted name of an importable module; `where` prefixes error messages.
    Raises UserError, with file and line, if it cannot be imported, and if it registers no attention or one that
    `register` refuses. None of its attentions is then registered.
    """
    names, refused = load_accepted(source, where)
    if refused:
        _forget(names)
        raise refused[0]
    return names


def load_accepted(source: str | Path, where: str = "") -> tuple[list[str], list[UserError]]:
    """As `load_plugin`, but an attention that is refused does not keep out the others.

    Returns the names of those that are registered, and an error for each that is not.
    """
    prefix = f"{where}: " if where else ""
    copy = _snapshot_or(source)
    if copy is not source and (folder := str(Path(copy).parent)) not in sys.path:
        sys.path.insert(0, folder)  # modules that were copied with it; before the current folder with the originals
    source = str(copy)
    before = set(ATTENTIONS.names())
    spec = _find(source, prefix)
    with ATTENTIONS.collect_refused() as refused:
        try:
            module = _import(spec)
        except (Exception, SystemExit) as error:
            _forget(set(ATTENTIONS.names()) - before)
            raise UserError(f"{prefix}{_place(error, spec)}: {_describe(error)}") from error
    names = []
    for name in (name for name in ATTENTIONS.names() if name not in before or _defined_in(name, module)):
        try:
            ATTENTIONS.types(name)
            names.append(name)
        except NameError as error:  # of an annotation that is a string
            refused.append((_definition(name), error))
            ATTENTIONS.remove(name)
    if not names:
        sys.modules.pop(spec.name, None)
    if not names and not refused:
        raise UserError(f"{prefix}plugin {source!r} registers no attention (decorate its class with @register)")
    return names, [UserError(f"{prefix}{place}: {_describe(error)}") for place, error in refused]


def source_hash(source: str | Path) -> str:
    """Hash, 16 hexadecimal digits, of the files of a plugin that is loaded: see `plugin_files`."""
    sha = hashlib.sha256()
    for file in plugin_files(str(_snapshot_or(source))).values():
        sha.update(hashlib.sha256(read_bytes(file)).digest())
    return sha.hexdigest()[:16]


def _snapshot_or(source: str | Path) -> str | Path:
    """The plugin's copy in this code snapshot, if there is one."""
    copy = SNAPSHOT_DIR / snapshot_folder(str(source)) / Path(source).name
    return copy if isfile(copy) else source


def _find(source: str, prefix: str) -> ModuleSpec:
    if source.endswith(".py"):
        path = real_path(user_path(source))
        name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or not isfile(path):
            raise UserError(f"{prefix}plugin {str(path)!r}: {why_no_file(path)}")
        if not os.access(path, os.R_OK):
            raise UserError(f"{prefix}plugin {str(path)!r}: Permission denied")
        return spec
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):  # a parent package is missing; the name is empty or relative
        spec = None
    except Exception as error:  # in a parent package
        raise UserError(f"{prefix}plugin {source!r}: {_describe(error)}") from error
    if spec is None:
        what = "a folder, not a module" if isdir(source) else "no such module"
        raise UserError(f"{prefix}plugin {source!r}: {what} (a file is given by its path, ending in .py)")
    return spec


def _import(spec: ModuleSpec) -> ModuleType:
    if not spec.name.startswith(FILE_MODULE):
        return importlib.import_module(spec.name)
    if spec.name in sys.modules:
        return sys.modules[spec.name]
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _forget(names: Iterable[str]) -> None:
    """Undo the import of attentions, so that another import registers them again."""
    for name in names:
        sys.modules.pop(ATTENTIONS.get(name).__module__, None)
        ATTENTIONS.remove(name)


def _place(error: BaseException, spec: ModuleSpec) -> str:
    """FILE:LINE of the plugin's own line at which importing it failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or spec.origin}:{error.lineno or 1}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    folders = tuple(f"{folder}{os.sep}" for folder in spec.submodule_search_locations or ())
    own = [frame for frame in frames if frame[0] == spec.origin or frame[0].startswith(folders)]
    return f"{own[-1][0]}:{own[-1][1]}" if own else str(spec.origin)


def _definition(name: str) -> str:
    """FILE:LINE of a registered attention."""
    attention = inspect.unwrap(ATTENTIONS.get(name))
    return f"{inspect.getsourcefile(attention)}:{inspect.getsourcelines(attention)[1]}"


def _describe(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _defined_in(name: str, module: ModuleType) -> bool:
    return f"{ATTENTIONS.get(name).__module__}.".startswith(f"{module.__name__}.")
