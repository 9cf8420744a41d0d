"""Imports point one way, and the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attnzoo

PACKAGE = Path(attnzoo.__file__).parent
FOUNDATION = {"errors", "rundir", "attempts", "process", "clock", "repeating", "measured", "geometry", "registry"}
# What each part may import of attnzoo, itself and its own files aside.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "rundir": {"errors"},
    "attempts": {"rundir"},
    "process": {"attempts"},
    "clock": set(),
    "repeating": set(),
    "measured": set(),
    "ledger": {"errors", "rundir"},
    "scheduler": {"errors"},
    "geometry": {"errors"},
    "registry": {"errors"},
    "config": {"errors", "rundir", "registry"},
    "ops": {*FOUNDATION, "config"},
    "attention": {*FOUNDATION, "config", "ops"},
    "models": {*FOUNDATION, "config", "ops", "attention"},
    "inspect": {*FOUNDATION, "config", "ops", "attention", "models", "interop"},
    "interop": {*FOUNDATION, "config", "ops", "attention", "models"},
    "data": {"errors", "rundir", "registry", "config"},
    "engine": {*FOUNDATION, "config", "ops", "attention", "models", "inspect", "interop", "data"},
    "report": {"errors", "rundir", "attempts", "process", "clock", "measured", "ledger", "scheduler", "config"},
    "bench": {"errors", "inspect"},
}
ANYTHING = {"sweep", "run", "__main__"}  # the top: sweep may not import run and __main__, tested below
HEAVY = ["torchvision", "timm", "omegaconf", "submitit", "pycocotools", "tensorboard", "rich", "matplotlib", "scipy"]


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


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if part_of(p) not in ("__init__", "experiments"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    part = part_of(path)
    parts = {other.name.removesuffix(".py") for other in PACKAGE.iterdir()}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("attnzoo.")} & parts
    if part in ANYTHING:
        forbidden = used & {"run", "__main__"} if part == "sweep" else set()
    else:
        assert part in ALLOWED, f"say in ALLOWED what {part} may import"
        forbidden = used - ALLOWED[part] - {part}
    assert not forbidden, f"{part} may not import {sorted(forbidden)}"


def test_the_package_itself_imports_nothing() -> None:
    assert imports(PACKAGE / "__init__.py") == set()


@pytest.mark.parametrize(("part", "library"), [("config", "torch"), ("report", "torch"), ("rundir", "omegaconf")])
def test_parts_that_stay_light(part: str, library: str) -> None:
    for path in (p for p in SOURCES if part_of(p) == part):
        assert library not in {name.split(".")[0] for name in imports(path)}, f"{path} imports {library}"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules outside the standard library that a fresh interpreter holds after `statement`."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split()) - set(sys.stdlib_module_names)


def test_the_command_line_loads_nothing_before_it_knows_what_is_asked() -> None:
    loaded = loaded_by("import attnzoo.__main__")
    assert "attnzoo" in loaded
    assert not loaded & {"torch", *HEAVY}


def test_operators_and_attentions_need_torch_and_einops_alone() -> None:
    """Compared with what torch itself loads, which depends on what is installed beside it."""
    extra = loaded_by("import attnzoo.ops, attnzoo.attention") - loaded_by("import torch, torch.utils.flop_counter")
    assert extra <= {"attnzoo", "einops"}
    assert "attnzoo" in extra


def test_attentions_work_without_the_other_libraries() -> None:
    """They import where nothing else is installed."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY}))"
    assert "attnzoo" in loaded_by(f"{blocked}\nimport attnzoo.ops, attnzoo.attention")


@pytest.mark.parametrize("part", ["config", "report"])
def test_status_and_compare_do_not_load_torch(part: str) -> None:
    assert "torch" not in loaded_by(f"import attnzoo.{part}")
