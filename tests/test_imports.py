"""Imports are layered, and light modules load no heavy libraries."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attnzoo

PACKAGE = Path(attnzoo.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
HEAVY = ["torchvision", "timm", "omegaconf", "pycocotools", "tensorboard", "rich", "matplotlib", "scipy"]


def read_table() -> dict[str, set[str] | None]:
    """What each package may import, from the table in CONTRIBUTING.md, in its order; None: anything."""
    allowed: dict[str, set[str] | None] = {}
    for line in CONTRIBUTING.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"`\w+`", cells[0]):
            allowed[cells[0].strip("`")] = None if cells[2] == "anything" else set(re.findall(r"`(\w+)`", cells[2]))
    return allowed


ALLOWED = read_table()


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file; `from a import b` gives both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if package_of(p) not in ("__init__", "experiments"))
MODULES = {
    ".".join(["attnzoo", *p.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): p for p in SOURCES
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    package = package_of(path)
    assert package in ALLOWED, f"say in the table of CONTRIBUTING.md what {package} may import"
    allowed = ALLOWED[package]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("attnzoo.")} & ALLOWED.keys()
    forbidden = set() if allowed is None else used - allowed - {package}
    assert not forbidden, f"{package} may not import {sorted(forbidden)}"


def test_import_table_is_acyclic_and_up_to_date() -> None:
    above: set[str] = set()
    for package, allowed in ALLOWED.items():
        assert (PACKAGE / package).is_dir() or (PACKAGE / f"{package}.py").exists(), package
        assert allowed is None or allowed <= above, f"{package} may import only what stands above it in the table"
        above.add(package)


def test_every_allowed_import_is_used() -> None:
    used = {package: set[str]() for package in ALLOWED}
    for path in SOURCES:
        used[package_of(path)] |= {name.split(".")[1] for name in imports(path) if name.startswith("attnzoo.")}
    for package, allowed in ALLOWED.items():
        assert allowed is None or allowed <= used[package], f"{package}: {sorted(allowed - used[package])}"


def test_modules_do_not_import_each_other() -> None:
    """No import cycle of any length, imports inside functions included."""
    below = {
        name: {used for used in imports(path) & MODULES.keys() if not f"{name}.".startswith(f"{used}.")}
        for name, path in MODULES.items()
    }
    list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError with the modules of a circle


@pytest.mark.parametrize("path", [p for p in SOURCES if package_of(p) == "config"], ids=lambda p: p.name)
def test_config_imports_only_declarations(path: Path) -> None:
    registries = (
        {"attnzoo.attention", "attnzoo.data.build", "attnzoo.data.hashes", "attnzoo.models.weights.files"}
        if path.name == "options.py"
        else set()
    )
    for name in (imports(path) & MODULES.keys()) - registries:
        package = name.split(".")[1]
        if package in ("attention", "data", "models", "engine"):
            declared = name.endswith(".config") or name in (f"attnzoo.{package}", "attnzoo.models.presets")
            assert declared, f"{path.name} imports {name}"


def test_package_init_imports_nothing() -> None:
    """`results` imports when it is called; see test_results_load_no_torch."""
    assert loaded_by("import attnzoo") - {"attnzoo"} == loaded_by("")


@pytest.mark.parametrize(
    ("part", "library"), [("schema", "torch"), ("config", "torch"), ("report", "torch"), ("rundir", "omegaconf")]
)
def test_light_modules_do_not_load_heavy_libraries(part: str, library: str) -> None:
    for path in (p for p in SOURCES if package_of(p) == part):
        assert library not in {name.split(".")[0] for name in imports(path)}, f"{path} imports {library}"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules outside the standard library that a fresh interpreter holds after `statement`."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split()) - set(sys.stdlib_module_names)


def test_command_line_imports_lazily() -> None:
    loaded = loaded_by("import attnzoo.__main__")
    assert "attnzoo" in loaded
    assert not loaded & {"torch", *HEAVY}


def test_operators_and_attentions_import_only_torch_and_einops() -> None:
    """Compared with the modules that torch itself loads, which depend on the other installed packages."""
    extra = loaded_by("import attnzoo.ops, attnzoo.attention") - loaded_by("import torch, torch.utils.flop_counter")
    assert extra <= {"attnzoo", "einops"}
    assert "attnzoo" in extra


def test_attentions_work_without_other_libraries() -> None:
    """They can be imported without any other package."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY}))"
    assert "attnzoo" in loaded_by(f"{blocked}\nimport attnzoo.ops, attnzoo.attention")


@pytest.mark.parametrize("part", ["config.load", "report.status_table", "report.summary", "models", "models.presets"])
def test_status_and_compare_do_not_load_torch(part: str) -> None:
    assert "torch" not in loaded_by(f"import attnzoo.{part}")
