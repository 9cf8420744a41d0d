"""The source files of a plugin: its own, and those of the modules of its folder that it imports."""

import ast
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from attnzoo.files import read_bytes
from attnzoo.paths import real_path, user_path

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
INSTALLED = ("site-packages", "dist-packages")


def plugin_files(source: str) -> dict[str, Path]:
    """The files of a plugin that is importable, by their paths in an import folder: `mine.py`, `library/core.py`.

    First its own: the `.py` file or module that `source` names, or all files of a package. Then those of the modules
    below its folder that these files import, directly or through each other, anywhere in their code. Installed packages
    and attnzoo are left out. Imports that are not statements are not found. Raises OSError for a file that cannot be
    read.
    """
    if source.endswith(".py"):
        path = user_path(source)
        found, top, folders = {path.name: path}, "", {path.absolute().parent, real_path(path).parent}
    else:
        top = source.partition(".")[0]
        top_spec, spec = importlib.util.find_spec(top), importlib.util.find_spec(source)
        assert top_spec is not None  # load_plugin has found it
        assert spec is not None
        found = _package_files(spec) or dict(_file(spec))
        locations = [Path(folder).parent for folder in top_spec.submodule_search_locations or ()]
        folders = {*locations} or {Path(top_spec.origin or "").parent}
    files: dict[str, Path] = {}
    while found:
        files |= dict(sorted(found.items()))
        imported = (item for name, path in found.items() for item in _imported(name, path))
        found = {n: p for n, p in imported if n not in files and _is_own(n, p, top, folders)}
    return files


def _package_files(spec: ModuleSpec) -> dict[str, Path]:
    """All Python files of a package; none of a module."""
    name = spec.name.replace(".", "/")
    packages = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return {f"{name}/{file.relative_to(p).as_posix()}": file for p in packages for file in p.rglob("*.py")}


def _imported(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """The files that the import statements of the file `name` load, packages of imported modules too."""
    try:
        tree = ast.parse(read_bytes(path))
    except (SyntaxError, ValueError):  # compiled, or imported only where it is not needed
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_files(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            package = name.split("/")[: -node.level] if node.level else []
            module = [*package, *(node.module.split(".") if node.module else ())]
            if node.level and not package:
                continue
            for alias in node.names:  # a module, or what one defines
                yield from _module_files([*module, alias.name])


def _module_files(parts: list[str]) -> Iterator[tuple[str, Path]]:
    """The files of a module, as far as it is one, and of the packages around it; nothing is imported."""
    top, *rest = parts
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    for part in [*rest, ""]:
        if spec is None:
            return
        yield from _file(spec)
        locations: Iterable[str] | None = spec.submodule_search_locations
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(locations)) if part and locations is not None else None


def _file(spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    if spec.origin is not None and spec.has_location:
        path = Path(spec.origin)
        name = spec.name.replace(".", "/")
        is_package = spec.submodule_search_locations is not None
        yield f"{name}/{path.name}" if is_package else f"{name}{''.join(path.suffixes)}", path


def _is_own(name: str, path: Path, top: str, folders: Iterable[Path]) -> bool:
    """Whether a file is of the plugin's own package `top`, or in its folders and of no installed package."""
    package = name.partition("/")[0].partition(".")[0]
    if package == top:
        return True
    if package == "attnzoo" or real_path(path).is_relative_to(STANDARD_LIBRARY):
        return False
    below = [p.relative_to(f) for f in folders for p in (path.absolute(), real_path(path)) if p.is_relative_to(f)]
    return any(not set(INSTALLED) & set(relative.parts) for relative in below)
