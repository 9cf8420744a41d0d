"""Attentions from a user's own file or module, outside the package."""

import hashlib
import importlib
import importlib.util
import sys
from os.path import isfile
from pathlib import Path
from types import ModuleType

from attnzoo.attention.base import ATTENTIONS
from attnzoo.errors import UserError

SNAPSHOT_DIR = Path(__file__).resolve().parents[2] / "plugins"  # in a code snapshot


def snapshot_filename(source: str) -> str:
    """File name of a plugin inside a code snapshot."""
    return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.py"


def load_plugin(source: str | Path, where: str = "") -> list[str]:
    """Import a `.py` file or a module and return the names of the attentions that it registers. Idempotent.

    `source` is a path ending in `.py`, or the dotted name of an importable module; `where` prefixes error messages.
    Raises UserError if it is missing, is not valid Python, registers no attention or one whose name is taken; other
    exceptions from the plugin propagate.
    """
    prefix = f"{where}: " if where else ""
    source = _snapshot_or(source)
    before = set(ATTENTIONS.names())
    load_module = _load_file if str(source).endswith(".py") else _load_module
    try:
        module = load_module(str(source), prefix)
    except SyntaxError as error:
        raise UserError(f"{prefix}{error.filename or source}:{error.lineno or 1}: SyntaxError: {error.msg}") from None
    names = [name for name in ATTENTIONS.names() if name not in before or _defined_in(name, module)]
    if not names:
        raise UserError(f"{prefix}plugin {str(source)!r} registers no attention (decorate its class with @register)")
    return names


def source_hash(source: str | Path) -> str:
    """Hash, 16 hexadecimal digits, of the file that `load_plugin` imports, or of all Python files of a package."""
    source = str(_snapshot_or(source))
    if source.endswith(".py"):
        files = [Path(source).expanduser()]
    else:
        spec = importlib.util.find_spec(source)
        assert spec is not None  # load_plugin has found it
        packages = [Path(folder) for folder in spec.submodule_search_locations or ()]
        files = sorted(file for package in packages for file in package.rglob("*.py"))
        files = files or [Path(spec.origin or "")]
    sha = hashlib.sha256()
    for file in files:
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()[:16]


def _snapshot_or(source: str | Path) -> str | Path:
    """The plugin's copy in this code snapshot, if there is one."""
    copy = SNAPSHOT_DIR / snapshot_filename(str(source))
    return copy if isfile(copy) else source


def _load_file(source: str, prefix: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    name = f"attnzoo_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not isfile(path):
        raise UserError(f"{prefix}plugin {str(path)!r} does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str, prefix: str) -> ModuleType:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent package is missing; the name is empty or relative
        spec = None
    if spec is None:
        raise UserError(f"{prefix}plugin {name!r}: no such module (a file is given by its path, ending in .py)")
    return importlib.import_module(name)


def _defined_in(name: str, module: ModuleType) -> bool:
    return f"{ATTENTIONS.get(name).__module__}.".startswith(f"{module.__name__}.")
