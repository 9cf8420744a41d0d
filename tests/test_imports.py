"""Imports point one way, and each layer needs no more than it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "attnzoo"
BELOW: dict[str, set[str]] = {"errors": set(), "rundir": set(), "geometry": {"errors"}, "registry": {"errors"}}
BELOW["config"] = {"errors", "rundir", "registry"}
BELOW["ops"] = {"errors"}
BELOW["attention"] = {"errors", "geometry", "registry", "ops"}
BELOW["models"] = {"errors", "geometry", "registry", "config", "ops", "attention"}
BELOW["data"] = {"errors", "registry", "config", "rundir"}
BELOW["inspect"] = BELOW["interop"] = BELOW["models"] | {"models"}
BELOW["report"] = {"errors", "rundir", "config"}
BELOW["engine"] = BELOW["inspect"] | {"inspect", "interop", "data", "rundir"}
BELOW["sweep"] = BELOW["engine"] | {"engine", "report"}
BELOW["run"] = BELOW["sweep"] | {"sweep"}
BELOW["__main__"] = BELOW["run"] | {"run"}


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The layers of attnzoo that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("attnzoo.")}
    return found & set(BELOW)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = layer(path)
    assert imported(path) <= BELOW[own] | {own}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("attnzoo.ops, attnzoo.attention", ["torchvision", "timm", "omegaconf", "pycocotools", "scipy", "rich"]),
        ("attnzoo.report.compare, attnzoo.report.table", ["torch"]),
        ("attnzoo.config", ["torch"]),
        ("attnzoo.run, attnzoo.__main__", ["torch", "omegaconf", "scipy"]),
    ],
)
def test_needs_no_more_than_it_says(module: str, unwanted: list[str]) -> None:
    program = f"import {module}, sys; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
